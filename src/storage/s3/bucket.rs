//! A bucket with a client: what every request needs.

use aws_sdk_s3::Client;
use aws_sdk_s3::config::Builder;
use aws_sdk_s3::types::StorageClass;

use super::client::timeouts;
use super::credentials::NamedCredentials;
use super::failure::Failure;
use super::place::Place;
use crate::storage::{StorageError, StorageErrorKind};

/// The place of a repository in S3.
#[derive(Clone, Debug)]
pub(super) struct Bucket {
    pub(super) client: Client,
    pub(super) place: Place,
    pub(super) storage_class: Option<StorageClass>,
    /// Whether it is AWS itself: no endpoint was given.
    pub(super) is_aws: bool,
    pub(super) credentials: NamedCredentials,
}

impl Bucket {
    pub(super) fn location(&self) -> String {
        self.place.to_string()
    }

    /// A key or prefix as the bucket has it.
    pub(super) fn full(&self, key: &str) -> String {
        format!("{}{key}", self.place.prefix)
    }

    /// Settings of a request with so much content.
    pub(super) fn settings(len: u64) -> Builder {
        Builder::new().timeout_config(timeouts(len))
    }

    /// The error to report, with where the credentials came from when they may be the reason.
    pub(super) fn error(&self, operation: &'static str, key: &str, failure: Failure) -> StorageError {
        let mut message = failure.message;
        if failure.kind == StorageErrorKind::Denied {
            message = format!("{message}; {}", self.credentials.source());
        }
        StorageError::new(failure.kind, operation, format!("{}/{key}", self.place), message)
    }
}
