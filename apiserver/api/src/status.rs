//! Errors as clients see them: `v1.Status`.

use serde::{Deserialize, Serialize};

/// One thing that is wrong with one field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Cause {
    pub reason: CauseReason,
    pub message: String,
    /// `spec.containers[0].image`
    pub field: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum CauseReason {
    FieldValueRequired,
    FieldValueInvalid,
    FieldValueDuplicate,
    FieldValueForbidden,
    FieldValueNotSupported,
    FieldValueTooLong,
    FieldValueNotFound,
    FieldManagerConflict,
    ResourceVersionTooLarge,
}
