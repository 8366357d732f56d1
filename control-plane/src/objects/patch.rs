//! JSON merge patch (RFC 7386) and JSON patch (RFC 6902), bounded.

use std::io;

use json_patch::{Patch, PatchOperation};
use serde_json::Value;

use crate::store::MAX_VALUE_BYTES;

/// Most operations of one JSON patch, as in Kubernetes.
const MAX_OPERATIONS: usize = 10_000;
/// Most copies in one JSON patch. Each can double the object, and is followed by a measurement.
const MAX_COPIES: usize = 100;

#[derive(Debug, thiserror::Error)]
pub enum PatchError {
    #[error("this is no JSON patch, a list of operations with op, path and value (RFC 6902): {0}")]
    Malformed(serde_json::Error),
    #[error("a merge patch must be an object, as the resource itself is (RFC 7386)")]
    NotAnObject,
    #[error("the JSON patch has {found} {what}, at most {most} are possible")]
    TooMany { what: &'static str, found: usize, most: usize },
    #[error("the JSON patch cannot be carried out: {0}")]
    Failed(json_patch::PatchError),
    #[error("the JSON patch makes the object larger than {MAX_VALUE_BYTES} bytes")]
    TooLarge,
}

pub fn merge_patch(object: &mut Value, patch: &Value) -> Result<(), PatchError> {
    if !patch.is_object() {
        return Err(PatchError::NotAnObject);
    }
    json_patch::merge(object, patch);
    Ok(())
}

pub fn json_patch(object: &mut Value, patch: Value) -> Result<(), PatchError> {
    let Patch(operations) = serde_json::from_value(patch).map_err(PatchError::Malformed)?;
    let copies = operations.iter().filter(|o| matches!(o, PatchOperation::Copy(_))).count();
    for (what, found, most) in
        [("operations", operations.len(), MAX_OPERATIONS), ("copies", copies, MAX_COPIES)]
    {
        if found > most {
            return Err(PatchError::TooMany { what, found, most });
        }
    }
    for operation in operations {
        let may_grow = matches!(operation, PatchOperation::Copy(_));
        json_patch::patch(object, &[operation]).map_err(PatchError::Failed)?;
        if may_grow && serde_json::to_writer(Room(MAX_VALUE_BYTES), object).is_err() {
            return Err(PatchError::TooLarge);
        }
    }
    Ok(())
}

/// Takes so many bytes and keeps none.
struct Room(usize);

impl io::Write for Room {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 = self.0.checked_sub(bytes.len()).ok_or(io::ErrorKind::FileTooLarge)?;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
