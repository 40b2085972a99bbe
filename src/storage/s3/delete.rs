//! Deleting objects.

use aws_sdk_s3::config::http::HttpRequest;
use aws_sdk_s3::types::{Delete, Error as OneError, ObjectIdentifier};
use base64::Engine;
use base64::engine::general_purpose::STANDARD;
use md5::{Digest, Md5};

use super::bucket::Bucket;
use super::failure::Failure;
use crate::storage::{ObjectKey, StorageErrorKind, StorageResult};

/// The most that one request may name.
const BATCH: usize = 1000;

impl Bucket {
    /// Deletes objects; those that are not there count as deleted.
    pub(super) async fn delete(&self, keys: &[ObjectKey]) -> StorageResult<()> {
        for batch in keys.chunks(BATCH) {
            let first = batch.first().map_or("", ObjectKey::as_str);
            self.delete_batch(batch).await.map_err(|failure| self.error("delete", first, failure))?;
        }
        Ok(())
    }

    async fn delete_batch(&self, keys: &[ObjectKey]) -> Result<(), Failure> {
        let other = |error: &dyn std::error::Error| Failure::found(StorageErrorKind::Other, error.to_string());
        let mut delete = Delete::builder().quiet(true);
        for key in keys {
            let object = ObjectIdentifier::builder().key(self.full(key.as_str())).build();
            delete = delete.objects(object.map_err(|error| other(&error))?);
        }
        let delete = delete.build().map_err(|error| other(&error))?;
        let request = self.client.delete_objects().bucket(&self.place.bucket).delete(delete).customize();
        let request = request.config_override(Self::settings(0)).mutate_request(add_content_md5);
        match request.send().await.map_err(Failure::from) {
            Ok(output) => output.errors().iter().find_map(failure_of).map_or(Ok(()), Err),
            // Google's XML interface has no DeleteObjects.
            Err(failure) if failure.is_not_implemented() => self.delete_one_by_one(keys).await,
            Err(failure) => Err(failure),
        }
    }

    async fn delete_one_by_one(&self, keys: &[ObjectKey]) -> Result<(), Failure> {
        for key in keys {
            let request = self.client.delete_object().bucket(&self.place.bucket).key(self.full(key.as_str()));
            match request.customize().config_override(Self::settings(0)).send().await.map_err(Failure::from) {
                Err(failure) if failure.kind != StorageErrorKind::NotFound => return Err(failure),
                Ok(_) | Err(_) => {}
            }
        }
        Ok(())
    }
}

/// Older services want the body's MD5 and know no other checksum.
fn add_content_md5(request: &mut HttpRequest) {
    if let Some(digest) = request.body().bytes().map(|body| STANDARD.encode(Md5::digest(body))) {
        request.headers_mut().insert("content-md5", digest);
    }
}

/// The failure to delete one of the objects; `None` when it was not there.
fn failure_of(error: &OneError) -> Option<Failure> {
    let (code, key) = (error.code().unwrap_or("no code"), error.key().unwrap_or_default());
    let kind = match code {
        "NoSuchKey" | "NoSuchVersion" => return None,
        "InternalError" | "SlowDown" | "ServiceUnavailable" | "OperationAborted" => StorageErrorKind::Transient,
        "AccessDenied" => StorageErrorKind::Denied,
        _ => StorageErrorKind::Other,
    };
    let message = error.message().unwrap_or_default();
    Some(Failure { kind, status: None, code: Some(code.to_owned()), message: format!("{code}: {message} ({key})") })
}
