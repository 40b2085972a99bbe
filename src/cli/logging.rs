//! Where log lines go and how they look.

use std::io::{self, IsTerminal, Write};
use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use file_rotate::compression::Compression;
use file_rotate::suffix::AppendCount;
use file_rotate::{ContentLimit, FileRotate};
use tracing::Level;
use tracing_subscriber::fmt::writer::BoxMakeWriter;

use crate::config::{LogConfig, LogFormat};
use crate::daemon::serve::ReopenLog;
use crate::error::{Error, ErrorCode, Result};

/// The daemon's log: text on a terminal, JSON otherwise, to standard error or to a file that is rotated by size.
///
/// Returns what opens the file anew, by its name: whoever rotates logs from outside renames it and then sends SIGHUP.
pub(super) fn start(config: &LogConfig, color: bool) -> Result<ReopenLog> {
    let to_terminal = config.file.is_none() && io::stderr().is_terminal();
    let json = match config.format {
        LogFormat::Auto => !to_terminal,
        LogFormat::Text => false,
        LogFormat::Json => true,
    };
    let ansi = color && to_terminal;
    let Some(path) = config.file.clone() else {
        install(config.level, json, ansi, BoxMakeWriter::new(io::stderr))?;
        return Ok(Box::new(|| Ok(())));
    };
    let file = LogFile(Arc::new(Mutex::new(open(&path, config)?)));
    let writer = file.clone();
    install(config.level, json, ansi, BoxMakeWriter::new(move || writer.clone()))?;
    let config = config.clone();
    Ok(Box::new(move || {
        let reopened = open(&path, &config)?;
        *file.lock() = reopened;
        Ok(())
    }))
}

/// The log's file as every line finds it. Cheap to clone.
#[derive(Clone)]
struct LogFile(Arc<Mutex<FileRotate<AppendCount>>>);

impl LogFile {
    fn lock(&self) -> MutexGuard<'_, FileRotate<AppendCount>> {
        // Whoever panicked while writing a line left the file as good as it was.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Write for LogFile {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.lock().write(bytes)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.lock().flush()
    }
}

fn open(path: &Path, config: &LogConfig) -> Result<FileRotate<AppendCount>> {
    let directory = path.parent().filter(|parent| !parent.as_os_str().is_empty());
    // FileRotate panics when it cannot open its file: find out before.
    let opened = directory
        .map_or(Ok(()), std::fs::create_dir_all)
        .and_then(|()| std::fs::OpenOptions::new().create(true).append(true).open(path).map(|_| ()));
    opened.map_err(|error| {
        Error::new(ErrorCode::InvalidConfig, format!("cannot write the log {}", path.display()))
            .because(error)
            .help("set `file` in [log] to a place that can be written, or to \"\" for standard error")
    })?;
    let limit = ContentLimit::BytesSurpassed(usize::try_from(config.rotate_size).unwrap_or(usize::MAX));
    Ok(FileRotate::new(path, AppendCount::new(config.rotate_keep), limit, Compression::None, None))
}

/// A client command's log: warnings and worse on standard error, more with `-v`.
pub(super) fn start_client(verbose: u8, quiet: bool) -> Result<()> {
    let level = match (quiet, verbose) {
        (true, _) => Level::ERROR,
        (false, 0) => Level::WARN,
        (false, 1) => Level::INFO,
        (false, 2) => Level::DEBUG,
        (false, _) => Level::TRACE,
    };
    install(level, false, false, BoxMakeWriter::new(io::stderr))
}

fn install(level: Level, json: bool, ansi: bool, writer: BoxMakeWriter) -> Result<()> {
    // What others log below a warning is of no use to anyone who runs a backup server.
    let filter = tracing_subscriber::EnvFilter::new(format!("warn,pgvault={level}"));
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_ansi(ansi).with_writer(writer);
    let installed = if json {
        builder.json().flatten_event(true).with_current_span(true).with_span_list(false).try_init()
    } else {
        builder.with_target(false).try_init()
    };
    installed.map_err(|error| Error::new(ErrorCode::Unclassified, "cannot start the log").because(error))
}
