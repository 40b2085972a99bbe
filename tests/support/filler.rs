//! WAL at a steady rate, beside the ledger.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use tokio_postgres::NoTls;

use super::pg::PgNode;

/// Writes messages that do not compress, until it is stopped.
pub struct Filler {
    stop: Arc<AtomicBool>,
    thread: Option<JoinHandle<()>>,
}

impl Filler {
    /// So many bytes of WAL a second, roughly.
    pub fn start(node: &PgNode, bytes_per_second: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let (conninfo, stopped) = (node.conninfo(), Arc::clone(&stop));
        let thread = std::thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            while !stopped.load(Ordering::SeqCst) {
                // A server that went away comes back.
                drop(runtime.block_on(fill(&conninfo, bytes_per_second, &stopped)));
                std::thread::sleep(Duration::from_millis(50));
            }
        });
        Self { stop, thread: Some(thread) }
    }

    /// Ends it.
    pub fn stop(mut self) {
        self.end();
    }

    fn end(&mut self) {
        self.stop.store(true, Ordering::SeqCst);
        if let Some(thread) = self.thread.take() {
            thread.join().unwrap();
        }
    }
}

impl Drop for Filler {
    fn drop(&mut self) {
        self.end();
    }
}

async fn fill(conninfo: &str, bytes_per_second: u64, stop: &AtomicBool) -> Result<(), tokio_postgres::Error> {
    let (client, connection) = tokio_postgres::connect(conninfo, NoTls).await?;
    let connection = tokio::spawn(connection);
    let message: usize = 64 << 10;
    // Farther apart than compressors look.
    let bytes: Vec<u8> = (0..1 << 20).flat_map(|_| rand::random::<u64>().to_le_bytes()).collect();
    let begun = Instant::now();
    let mut written = 0;
    while !stop.load(Ordering::SeqCst) {
        if begun.elapsed().as_secs_f64() * bytes_per_second as f64 > written as f64 {
            let at = rand::random::<u32>() as usize % (bytes.len() - message);
            let message_bytes = &bytes[at..at + message];
            client.execute("SELECT pg_logical_emit_message(false, 'filler', $1::bytea)", &[&message_bytes]).await?;
            written += message;
        } else {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }
    drop(client);
    connection.await.unwrap()
}
