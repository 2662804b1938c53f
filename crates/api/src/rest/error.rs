//! Errors as the API sends them.

use serde::{Deserialize, Serialize};
use utoipa::ToSchema;

/// What every answer outside 2xx holds.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct ApiError {
    /// Stable name of the kind of error: `invalid`, `not-found`, `exists`, `lost-race`, `unauthorized`, `bad-request`,
    /// `too-large`, `conflict`, `unavailable`, `timeout`, `internal`.
    #[schema(example = "invalid")]
    pub code: String,
    /// What is wrong, in plain words.
    pub message: String,
    /// What to do next.
    pub hint: String,
    /// Each thing that is wrong, where there are several.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub problems: Vec<Problem>,
}

/// One thing that is wrong with a change.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct Problem {
    /// Stable name of the rule that is broken.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub code: String,
    /// The object that is wrong, as `kind/name`.
    #[schema(example = "subnet/contoso/blue/web")]
    pub object: String,
    /// What is wrong, naming both objects.
    pub message: String,
    /// What to do next.
    pub hint: String,
}

impl std::fmt::Display for ApiError {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.message)?;
        for p in &self.problems {
            write!(f, "\n  {}: {}", p.object, p.message)?;
        }
        Ok(())
    }
}
