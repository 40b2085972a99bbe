//! Bodies of protocol messages: pure decoding, bounded by the message that they stand in.

use crate::primary::error::{ServerError, SqlState};

/// One row as text; `None` for NULL.
pub(crate) type Row = Vec<Option<Vec<u8>>>;

/// A big-endian number at the front, and what follows.
pub(crate) fn take_i32(bytes: &[u8]) -> Option<(i32, &[u8])> {
    bytes.split_first_chunk().map(|(number, rest)| (i32::from_be_bytes(*number), rest))
}

/// A big-endian number at the front, and what follows.
fn take_i16(bytes: &[u8]) -> Option<(i16, &[u8])> {
    bytes.split_first_chunk().map(|(number, rest)| (i16::from_be_bytes(*number), rest))
}

/// A string that ends with a zero byte, and what follows.
pub(crate) fn take_string(bytes: &[u8]) -> Option<(&[u8], &[u8])> {
    let end = bytes.iter().position(|&byte| byte == 0)?;
    Some((bytes.get(..end)?, bytes.get(end + 1..)?))
}

/// DataRow.
pub(crate) fn data_row(body: &[u8]) -> Option<Row> {
    let (count, mut rest) = take_i16(body)?;
    let mut row = Vec::new();
    for _ in 0..u16::try_from(count).ok()? {
        let (length, after) = take_i32(rest)?;
        rest = after;
        if length == -1 {
            row.push(None);
            continue;
        }
        let (value, after) = rest.split_at_checked(usize::try_from(length).ok()?)?;
        row.push(Some(value.to_vec()));
        rest = after;
    }
    Some(row)
}

/// ErrorResponse and NoticeResponse. Fields that are missing or torn come out empty: an error must not be lost because
/// it is badly made.
pub(crate) fn error_fields(body: &[u8]) -> ServerError {
    let mut error = ServerError {
        severity: String::new(),
        sqlstate: SqlState::new(""),
        message: String::new(),
        detail: None,
        hint: None,
    };
    let mut localized = String::new();
    let mut rest = body;
    while let Some((&field, after)) = rest.split_first().filter(|&(&field, _)| field != 0) {
        let (value, after) = take_string(after).unwrap_or((after, &[]));
        let value = String::from_utf8_lossy(value).into_owned();
        match field {
            b'V' => error.severity = value,
            b'S' => localized = value,
            b'C' => error.sqlstate = SqlState::new(&value),
            b'M' => error.message = value,
            b'D' => error.detail = Some(value),
            b'H' => error.hint = Some(value),
            _ => {}
        }
        rest = after;
    }
    if error.severity.is_empty() {
        error.severity = localized;
    }
    error
}

/// ParameterStatus: name and value.
pub(crate) fn parameter_status(body: &[u8]) -> Option<(String, String)> {
    let (name, rest) = take_string(body)?;
    let (value, _) = take_string(rest)?;
    Some((String::from_utf8_lossy(name).into_owned(), String::from_utf8_lossy(value).into_owned()))
}

#[cfg(test)]
mod tests {
    use proptest::prelude::{any, proptest};

    use super::{data_row, error_fields, parameter_status};

    #[test]
    fn an_error_is_read_with_its_fields() {
        let error = error_fields(b"SFEHLER\0VERROR\0C58P01\0Mgone\0Ddetail\0Hhint\0Fx.c\0\0");
        assert_eq!(error.severity, "ERROR");
        assert_eq!(error.sqlstate.as_str(), "58P01");
        assert_eq!(
            (error.message.as_str(), error.detail.as_deref(), error.hint.as_deref()),
            ("gone", Some("detail"), Some("hint"))
        );
        assert_eq!(error.to_string(), "gone (SQLSTATE 58P01): detail");
    }

    #[test]
    fn a_torn_error_is_still_an_error() {
        assert_eq!(error_fields(b"Mhalf a mess").message, "half a mess");
        assert_eq!(error_fields(b"").sqlstate.as_str(), "XX000");
        assert_eq!(error_fields(b"C12\0\0").sqlstate.as_str(), "XX000");
    }

    #[test]
    fn rows_are_read_with_nulls() {
        assert_eq!(data_row(b"\0\x02\0\0\0\x01a\xff\xff\xff\xff"), Some(vec![Some(b"a".to_vec()), None]));
        for torn in [
            &b""[..],
            b"\0",
            b"\0\x01",
            b"\0\x01\0\0\0\x02a",
            b"\xff\xff",
            b"\0\x01\xff\xff\xff\xfe",
            b"\0\x01\x7f\xff\xff\xff",
        ] {
            assert_eq!(data_row(torn), None, "{torn:?}");
        }
    }

    proptest! {
        #[test]
        fn no_bytes_make_a_decoder_panic(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            error_fields(&bytes);
            data_row(&bytes);
            parameter_status(&bytes);
        }
    }
}
