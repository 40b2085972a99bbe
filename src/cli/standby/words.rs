//! What is said of the primary and the slot, as text and as JSON.

use serde_json::{Value, json};

use crate::error::{Error, Result};
use crate::primary::SlotName;
use crate::standby::{Found, SlotStep};

/// The slot of a plan and what is to be done about it.
pub(super) type Slot = Option<(SlotName, SlotStep)>;
/// The slot and what was done about it.
pub(super) type SlotDone = Option<(SlotName, Result<SlotStep>)>;

pub(super) fn primary_document(primary: Option<&Found>) -> Value {
    match primary {
        None => Value::Null,
        Some(Found::Away(why)) => json!({ "reachable": false, "reason": why }),
        Some(Found::Here(primary)) => json!({
            "reachable": true,
            "host": primary.host.to_string(),
            "timeline": primary.history.timeline(),
            "flush_lsn": primary.flush_lsn,
        }),
    }
}

pub(super) fn slot_document(slot: &Slot) -> Value {
    let document = |(name, step): &(SlotName, SlotStep)| json!({ "name": name.as_str(), "action": step.as_str() });
    slot.as_ref().map_or(Value::Null, document)
}

pub(super) fn slot_done_document(slot: &SlotDone) -> Value {
    slot.as_ref().map_or(Value::Null, |(name, made)| {
        json!({
            "name": name.as_str(),
            "action": made.as_ref().map(|step| step.as_str()).ok(),
            "error": made.as_ref().err().map(Error::in_one_line),
        })
    })
}

/// The lines of a plan.
pub(super) fn lines(primary: Option<&Found>, slot: &Slot) -> Vec<String> {
    let mut lines = Vec::new();
    match primary {
        Some(Found::Here(primary)) => lines.push(format!(
            "Primary     {}, timeline {}, WAL up to {}; its data is not read",
            primary.host,
            primary.history.timeline(),
            primary.flush_lsn
        )),
        Some(Found::Away(why)) => lines.push(format!("Primary     away: {why}")),
        None => {}
    }
    if let Some((name, step)) = slot {
        let what = match step {
            SlotStep::Create => "is made",
            SlotStep::Replace => "keeps no WAL any more and is made anew",
            SlotStep::Use => "is there and not in use",
        };
        lines.push(format!("Slot        {name} {what}"));
    }
    lines
}

/// What is left for a person to do about the slot.
pub(super) fn next_steps(later: Option<&SlotName>, done: &SlotDone) -> Vec<String> {
    let make = |name: &SlotName| format!("on the primary: SELECT pg_create_physical_replication_slot('{name}', true);");
    if let Some(name) = later {
        // Named in the settings before it exists, it would keep the standby from streaming.
        return vec![
            make(name),
            format!("then on the standby: ALTER SYSTEM SET primary_slot_name = '{name}'; SELECT pg_reload_conf();"),
        ];
    }
    match done {
        Some((name, Err(_))) => vec![make(name)],
        _ => Vec::new(),
    }
}
