//! Whether a server may continue what we hold: by its identifier, and by the histories that it tells.

use super::Receiver;
use super::contact::Contact;
use super::start::{ServerPosition, Start, decide};
use super::trouble::Trouble;
use crate::error::{Error, ErrorCode};

impl Receiver {
    /// The server must be the one whose WAL we hold.
    pub(super) fn check_identity(&self, met: &Contact) -> Result<(), Trouble> {
        let (ours, theirs) = (self.spool.system_identifier(), met.system_identifier);
        let cluster = &self.settings.cluster;
        let refused = |fact: String| {
            Err(Trouble::Refused(
                Error::new(ErrorCode::ForeignCluster, format!("the server is not cluster \"{cluster}\""))
                    .because(fact)
                    .because("WAL of two clusters must not be joined: a restore would be silently wrong")
                    .help("point conninfo at the right server, or give this one a cluster name of its own")
                    .help(format!("or begin a new lineage with this one: pgvault serve --new-lineage {cluster}")),
            ))
        };
        if ours != theirs {
            return refused(format!("the server has system identifier {theirs}, what is stored has {ours}"));
        }
        let (ours, theirs) = (self.spool.segment_size().bytes(), met.segment_size.bytes());
        if ours != theirs {
            return refused(format!("the server's WAL segments have {theirs} bytes, those stored have {ours}"));
        }
        Ok(())
    }

    /// Every history file that the server tells must be the one we know. A new one is kept only when the server is followed:
    /// another server's would stand in the way of the right one.
    pub(super) fn compare_histories(&self, met: &Contact) -> Result<(), Trouble> {
        for (timeline, bytes) in &met.history_files {
            if let Some(kept) = self.spool.history_bytes(*timeline)?.filter(|kept| kept != bytes) {
                let line = |bytes: &[u8]| {
                    let text = String::from_utf8_lossy(bytes);
                    text.lines().filter(|line| !line.trim().is_empty()).collect::<Vec<_>>().join("; ")
                };
                return Err(Trouble::Refused(
                    Error::new(
                        ErrorCode::ForeignCluster,
                        format!(
                            "the server tells another history of timeline {timeline} of \"{}\"",
                            self.settings.cluster
                        ),
                    )
                    .because(format!("the server says: {}", line(bytes)))
                    .because(format!("what is stored says: {}", line(&kept)))
                    .help("point conninfo at the right server, or give this one a cluster name of its own")
                    .help(format!(
                        "or begin a new lineage with this one: pgvault serve --new-lineage {}",
                        self.settings.cluster
                    )),
                ));
            }
        }
        Ok(())
    }

    /// Before anything is changed on the server: a slot on one that is not followed would keep its WAL for nobody.
    pub(super) fn check_continues(&self, server: &ServerPosition) -> Result<(), Trouble> {
        let ours = self.ours()?;
        match decide(ours.held, &ours.history, server, ours.segment_size) {
            Start::Conflict(conflict) => Err(conflict.into()),
            Start::First | Start::At { .. } | Start::Ahead { .. } => Ok(()),
        }
    }
}
