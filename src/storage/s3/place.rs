//! `s3://bucket/prefix`.

use std::fmt;

/// Where a repository lies: a bucket and a prefix, which is empty or ends in `/`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Place {
    pub(super) bucket: String,
    pub(super) prefix: String,
}

/// Longest prefix: with a key it stays below the 1024 bytes of S3, and far below what breaks in practice.
const MAX_PREFIX: usize = 300;

impl Place {
    /// Reads `s3://bucket` or `s3://bucket/prefix`; the prefix must be whole, plain components.
    pub(super) fn parse(url: &str) -> Result<Self, String> {
        let rest = url.strip_prefix("s3://").ok_or("it does not start with s3://")?;
        let (bucket, prefix) = rest.split_once('/').unwrap_or((rest, ""));
        let bucket_ok = |b: u8| b.is_ascii_alphanumeric() || b"-_.".contains(&b);
        if bucket.is_empty() || bucket.starts_with('.') || !bucket.bytes().all(bucket_ok) {
            return Err(format!("\"{bucket}\" is no name of a bucket"));
        }
        let prefix = prefix.trim_end_matches('/');
        if prefix.is_empty() {
            return Ok(Self { bucket: bucket.to_owned(), prefix: String::new() });
        }
        // Characters that some stores or proxies rewrite would make two names for one place.
        let part_ok = |part: &str| {
            !matches!(part, "" | "." | "..")
                && part.bytes().all(|b| b.is_ascii_graphic() && !b"\\%?#\"<>`".contains(&b))
        };
        if prefix.len() > MAX_PREFIX || !prefix.split('/').all(part_ok) {
            return Err(format!("\"{prefix}\" cannot be the prefix of a repository"));
        }
        Ok(Self { bucket: bucket.to_owned(), prefix: format!("{prefix}/") })
    }
}

impl fmt::Display for Place {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "s3://{}", self.bucket)?;
        if self.prefix.is_empty() { Ok(()) } else { write!(f, "/{}", self.prefix.trim_end_matches('/')) }
    }
}

#[cfg(test)]
mod tests {
    use super::Place;

    #[test]
    fn a_place_is_a_bucket_and_a_prefix_of_whole_components() {
        for (url, bucket, prefix, shown) in [
            ("s3://b", "b", "", "s3://b"),
            ("s3://b/", "b", "", "s3://b"),
            ("s3://my.bucket-1/pg", "my.bucket-1", "pg/", "s3://my.bucket-1/pg"),
            ("s3://b/a/b=1/", "b", "a/b=1/", "s3://b/a/b=1"),
        ] {
            let place = Place::parse(url).unwrap();
            assert_eq!((place.bucket.as_str(), place.prefix.as_str()), (bucket, prefix), "{url}");
            assert_eq!(place.to_string(), shown);
        }
        for bad in ["", "b/p", "s3:/b", "s3://", "s3:///p", "s3://b//p", "s3://b/../p", "s3://b/a b", "s3://k:s@b/p"] {
            assert!(Place::parse(bad).is_err(), "{bad}");
        }
    }
}
