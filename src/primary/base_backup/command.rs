//! The BASE_BACKUP command in both grammars (repl_gram.y of 14, and of 15 and later).

use super::{BaseBackupOptions, CheckpointMode, ManifestChecksums};
use crate::primary::version::ServerVersion;

impl ManifestChecksums {
    /// PostgreSQL's word.
    const fn as_str(self) -> &'static str {
        match self {
            Self::Crc32c => "CRC32C",
            Self::Sha224 => "SHA224",
            Self::Sha256 => "SHA256",
            Self::Sha384 => "SHA384",
            Self::Sha512 => "SHA512",
        }
    }
}

impl BaseBackupOptions {
    /// The command for a server of this version.
    pub(super) fn command(&self, version: ServerVersion) -> String {
        if version.major() >= 15 { self.with_parentheses() } else { self.with_words() }
    }

    fn with_parentheses(&self) -> String {
        let mut options = vec![format!("LABEL '{}'", escape(&self.label))];
        if self.progress {
            options.push("PROGRESS".to_owned());
        }
        let checkpoint = match self.checkpoint {
            CheckpointMode::Fast => "fast",
            CheckpointMode::Spread => "spread",
        };
        options.push(format!("CHECKPOINT '{checkpoint}'"));
        options.extend(["WAIT false", "WAL false", "TABLESPACE_MAP"].map(str::to_owned));
        if self.incremental {
            options.push("INCREMENTAL".to_owned());
        }
        options.extend(self.max_rate.map(|rate| format!("MAX_RATE {}", rate.kib_per_second())));
        options.push(format!("VERIFY_CHECKSUMS {}", self.verify_checksums));
        options.push(format!("MANIFEST 'yes', MANIFEST_CHECKSUMS '{}'", self.manifest_checksums.as_str()));
        format!("BASE_BACKUP ({})", options.join(", "))
    }

    fn with_words(&self) -> String {
        let mut words = vec![format!("LABEL '{}'", escape(&self.label))];
        if self.progress {
            words.push("PROGRESS".to_owned());
        }
        if self.checkpoint == CheckpointMode::Fast {
            words.push("FAST".to_owned());
        }
        words.push("NOWAIT TABLESPACE_MAP".to_owned());
        words.extend(self.max_rate.map(|rate| format!("MAX_RATE {}", rate.kib_per_second())));
        if !self.verify_checksums {
            words.push("NOVERIFY_CHECKSUMS".to_owned());
        }
        words.push(format!("MANIFEST 'yes' MANIFEST_CHECKSUMS '{}'", self.manifest_checksums.as_str()));
        format!("BASE_BACKUP {}", words.join(" "))
    }
}

/// The label inside a literal. It becomes a line of `backup_label`: control characters would make two of it.
fn escape(label: &str) -> String {
    label.replace(|c: char| c.is_control(), " ").replace('\'', "''")
}

#[cfg(test)]
mod tests {
    use super::super::{BaseBackupOptions, CheckpointMode, MaxRate};
    use crate::primary::version::ServerVersion;

    #[test]
    fn the_command_is_in_the_grammar_of_the_server() {
        let mut options = BaseBackupOptions::new("it's\nme");
        options.max_rate = Some(MaxRate::from_bytes_per_second(50 << 20));
        assert_eq!(
            options.command(ServerVersion::new(150_000)),
            "BASE_BACKUP (LABEL 'it''s me', PROGRESS, CHECKPOINT 'spread', WAIT false, WAL false, TABLESPACE_MAP, \
             MAX_RATE 51200, VERIFY_CHECKSUMS true, MANIFEST 'yes', MANIFEST_CHECKSUMS 'CRC32C')"
        );
        options.incremental = true;
        assert!(options.command(ServerVersion::new(170_000)).contains("TABLESPACE_MAP, INCREMENTAL, MAX_RATE 51200"));
        options.checkpoint = CheckpointMode::Fast;
        options.verify_checksums = false;
        assert_eq!(
            options.command(ServerVersion::new(140_023)),
            "BASE_BACKUP LABEL 'it''s me' PROGRESS FAST NOWAIT TABLESPACE_MAP MAX_RATE 51200 NOVERIFY_CHECKSUMS \
             MANIFEST 'yes' MANIFEST_CHECKSUMS 'CRC32C'"
        );
    }

    #[test]
    fn rates_are_kept_in_the_servers_range() {
        let rates = [(0, 32), (32 << 10, 32), (1 << 20, 1024), (u64::MAX, 1_048_576)];
        for (bytes, kib) in rates {
            assert_eq!(MaxRate::from_bytes_per_second(bytes).kib_per_second(), kib);
        }
    }
}
