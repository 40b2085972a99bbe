//! Requests that are signed with a checksum which is known already.

use aws_runtime::auth::PayloadSigningOverride;
use aws_sdk_s3::config::{ConfigBag, Intercept, RuntimeComponents};
use aws_sdk_s3::error::BoxError;
use aws_smithy_runtime_api::client::interceptors::context::BeforeTransmitInterceptorContextRef;

use crate::storage::Sha256;

/// The signature covers `x-amz-content-sha256`, which the SDK computes of every body. That of an object is known, and
/// hashing it a second time costs more than sending it: the request that goes out is the same.
#[derive(Debug)]
pub(super) struct KnownSha256(pub(super) Sha256);

impl Intercept for KnownSha256 {
    fn name(&self) -> &'static str {
        "KnownSha256"
    }

    fn read_before_signing(
        &self,
        _context: &BeforeTransmitInterceptorContextRef<'_>,
        _components: &RuntimeComponents,
        config: &mut ConfigBag,
    ) -> Result<(), BoxError> {
        config.interceptor_state().store_put(PayloadSigningOverride::Precomputed(hex::encode(self.0)));
        Ok(())
    }
}
