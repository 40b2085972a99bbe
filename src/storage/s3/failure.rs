//! What a failed request means.

use std::error::Error;

use aws_credential_types::provider::error::CredentialsError;
use aws_sdk_s3::config::http::HttpResponse;
use aws_sdk_s3::error::{ProvideErrorMetadata, SdkError};
use aws_sdk_s3::operation::{RequestId, RequestIdExt};

use crate::storage::StorageErrorKind;

/// A failed request, with what the store said about it.
#[derive(Debug)]
pub(super) struct Failure {
    pub(super) kind: StorageErrorKind,
    /// Status of the HTTP response, when there was one.
    pub(super) status: Option<u16>,
    /// S3's error code: `NoSuchKey`.
    pub(super) code: Option<String>,
    pub(super) message: String,
}

impl Failure {
    /// A failure that was found here rather than told by the store.
    pub(super) fn found(kind: StorageErrorKind, message: impl Into<String>) -> Self {
        Self { kind, status: None, code: None, message: message.into() }
    }

    pub(super) fn has_code(&self, codes: &[&str]) -> bool {
        self.code.as_deref().is_some_and(|code| codes.contains(&code))
    }

    /// Whether the store does not know what a header or a request asks for.
    pub(super) fn is_not_implemented(&self) -> bool {
        self.status == Some(501) || self.has_code(&["NotImplemented", "MethodNotAllowed"])
    }
}

impl<E> From<SdkError<E, HttpResponse>> for Failure
where
    E: ProvideErrorMetadata + Error + Send + Sync + 'static,
{
    fn from(error: SdkError<E, HttpResponse>) -> Self {
        let status = error.raw_response().map(|response| response.status().as_u16());
        let code = error.code().map(str::to_owned);
        let kind = match &error {
            SdkError::ServiceError(_) => kind_of_answer(status.unwrap_or_default(), code.as_deref()),
            SdkError::ResponseError(_) if status.is_some_and(|status| status < 300) => {
                // Success with a body that cannot be: an error page, a proxy, a connection that ended early.
                StorageErrorKind::Transient
            }
            SdkError::ResponseError(_) => kind_of_answer(status.unwrap_or_default(), code.as_deref()),
            SdkError::TimeoutError(_) => StorageErrorKind::Transient,
            _ => kind_of_no_answer(&error),
        };
        let mut message = match (&code, error.message()) {
            (Some(code), Some(message)) if !message.is_empty() => format!("{code}: {}", message.trim_end_matches('.')),
            (Some(code), _) => code.clone(),
            (None, _) => chain(&error),
        };
        let mut facts: Vec<String> = status.iter().map(|status| format!("HTTP {status}")).collect();
        facts.extend(error.request_id().map(|id| format!("request {id}")));
        facts.extend(error.extended_request_id().map(|id| format!("host id {id}")));
        if !facts.is_empty() {
            message = format!("{message} ({})", facts.join(", "));
        }
        Self { kind, status, code, message }
    }
}

/// What an answer that is no success means.
fn kind_of_answer(status: u16, code: Option<&str>) -> StorageErrorKind {
    match (status, code.unwrap_or_default()) {
        (_, "NoSuchKey") => StorageErrorKind::NotFound,
        (_, "NoSuchBucket" | "AllAccessDisabled" | "InvalidBucketName") => StorageErrorKind::Denied,
        (_, "SlowDown" | "InternalError" | "ServiceUnavailable" | "RequestTimeout" | "OperationAborted")
        | (_, "ConditionalRequestConflict" | "Throttling" | "RequestLimitExceeded") => StorageErrorKind::Transient,
        // The bytes arrived other than they were sent, or the upload went away under us: from the start.
        (_, "BadDigest" | "InvalidDigest" | "XAmzContentSHA256Mismatch" | "IncompleteBody" | "NoSuchUpload") => {
            StorageErrorKind::Transient
        }
        (507, _) | (_, "QuotaExceeded" | "XMinioStorageFull" | "InsufficientStorage" | "StorageFull") => {
            StorageErrorKind::Full
        }
        (301 | 307 | 308 | 401 | 403, _) => StorageErrorKind::Denied,
        // The region in the signature is not the bucket's.
        (400, "AuthorizationHeaderMalformed" | "InvalidToken" | "ExpiredToken" | "InvalidAccessKeyId") => {
            StorageErrorKind::Denied
        }
        (501, _) => StorageErrorKind::Other,
        (408 | 409 | 425 | 429 | 500..=599, _) => StorageErrorKind::Transient,
        _ => StorageErrorKind::Other,
    }
}

/// What it means that no answer came.
fn kind_of_no_answer<E>(error: &SdkError<E, HttpResponse>) -> StorageErrorKind
where
    E: Error + Send + Sync + 'static,
{
    let mut next: Option<&(dyn Error + 'static)> = Some(error);
    while let Some(cause) = next {
        if let Some(credentials) = cause.downcast_ref::<CredentialsError>() {
            return match credentials {
                CredentialsError::CredentialsNotLoaded(_) | CredentialsError::InvalidConfiguration(_) => {
                    StorageErrorKind::Denied
                }
                // A token service that is away for a moment.
                _ => StorageErrorKind::Transient,
            };
        }
        if let Some(rustls::Error::InvalidCertificate(_)) = cause.downcast_ref() {
            return StorageErrorKind::Denied;
        }
        // An io::Error gives as its source that of the error inside it, and so passes over that one.
        let inside = cause.downcast_ref::<std::io::Error>().and_then(std::io::Error::get_ref);
        next = inside.map(|inside| inside as &(dyn Error + 'static)).or_else(|| cause.source());
    }
    match error {
        SdkError::ConstructionFailure(_) => StorageErrorKind::Other,
        SdkError::DispatchFailure(failure) if failure.is_user() => StorageErrorKind::Other,
        _ => StorageErrorKind::Transient,
    }
}

/// The error and everything beneath it in one line.
fn chain(error: &(dyn Error + 'static)) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !cause_text.is_empty() && !text.contains(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::kind_of_answer;
    use crate::storage::StorageErrorKind as Kind;

    #[test]
    fn answers_mean_what_can_be_done_about_them() {
        for (status, code, kind) in [
            (404, "NoSuchKey", Kind::NotFound),
            (404, "NoSuchBucket", Kind::Denied),
            // A 404 without S3's code may be a proxy's; it proves nothing about the object.
            (404, "", Kind::Other),
            (403, "AccessDenied", Kind::Denied),
            (403, "SignatureDoesNotMatch", Kind::Denied),
            (403, "RequestTimeTooSkewed", Kind::Denied),
            (403, "", Kind::Denied),
            (301, "PermanentRedirect", Kind::Denied),
            (400, "AuthorizationHeaderMalformed", Kind::Denied),
            (400, "RequestTimeout", Kind::Transient),
            (400, "BadDigest", Kind::Transient),
            (400, "InvalidArgument", Kind::Other),
            (409, "ConditionalRequestConflict", Kind::Transient),
            (429, "", Kind::Transient),
            (500, "InternalError", Kind::Transient),
            (503, "SlowDown", Kind::Transient),
            (503, "", Kind::Transient),
            (501, "NotImplemented", Kind::Other),
            (507, "", Kind::Full),
            (403, "QuotaExceeded", Kind::Full),
        ] {
            assert_eq!(kind_of_answer(status, Some(code)), kind, "{status} {code}");
        }
    }
}
