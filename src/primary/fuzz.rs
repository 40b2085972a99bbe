use super::message;
use super::wire::{ReadBuffer, body};

/// A CopyData payload of a walsender.
pub fn stream_message(bytes: &[u8]) {
    // The outcome does not matter here: that there is one does.
    drop(message::decode(bytes));
}

/// Frames and the bodies of rows, errors and parameters.
pub fn frames(bytes: &[u8]) {
    let mut buffer = ReadBuffer::new(16, 1 << 16);
    let mut rest = bytes;
    while let Ok(spare) = buffer.spare() {
        let count = spare.len().min(rest.len());
        let (now, later) = rest.split_at(count);
        spare[..count].copy_from_slice(now);
        buffer.filled(count);
        rest = later;
        while let Ok(Some(frame)) = buffer.next_frame() {
            let bytes = buffer.body(&frame);
            drop(body::data_row(bytes));
            drop(body::error_fields(bytes));
            drop(body::parameter_status(bytes));
        }
        if count == 0 {
            return;
        }
    }
}
