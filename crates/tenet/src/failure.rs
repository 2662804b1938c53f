//! Why a command failed: what happened, what to do next, and the exit code.

use std::error::Error;
use std::fmt;
use tenet_api::{client::ClientError, local::LocalError};

/// A failed command.
#[derive(Debug)]
pub struct Failure {
    /// The exit code, as documented in `--help`.
    pub code: Code,
    /// What happened.
    pub text: String,
    /// What to do next; empty if the text says it.
    pub hint: String,
}

/// The documented exit codes other than 0 and those of the command line's parser (2).
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Code {
    /// Refused or failed.
    Failed = 1,
    /// The command line is wrong in a way that the parser cannot see.
    Usage = 2,
    /// No controller.
    Unreachable = 3,
    /// Somebody else was first.
    Conflict = 4,
    /// Not proven on all hosts.
    NotInSync = 5,
}

/// Result of a command.
pub type Outcome<T = ()> = Result<T, Failure>;

impl Failure {
    /// Refused or failed.
    pub fn new(text: impl Into<String>, hint: impl Into<String>) -> Self {
        Self { code: Code::Failed, text: text.into(), hint: hint.into() }
    }

    /// An error with all its causes.
    pub fn of(error: &dyn Error, hint: impl Into<String>) -> Self {
        Self::new(chain(error), hint)
    }

    /// With another exit code.
    #[must_use]
    pub fn code(mut self, code: Code) -> Self {
        self.code = code;
        self
    }
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "error: {}", self.text)?;
        if !self.hint.is_empty() {
            write!(f, "\nnext: {}", self.hint)?;
        }
        Ok(())
    }
}

impl From<ClientError> for Failure {
    fn from(error: ClientError) -> Self {
        let hint = error.hint();
        match &error {
            ClientError::Refused { status, error } => {
                let mut text = error.message.clone();
                // A single one is told by the message itself.
                for problem in error.problems.iter().filter(|p| !error.message.contains(&p.message)) {
                    text += &format!("\n  {}", problem.message);
                    if !problem.hint.is_empty() && problem.hint != error.hint {
                        text += &format!(": {}", problem.hint);
                    }
                }
                let code = match status {
                    409 => Code::Conflict,
                    503 => Code::Unreachable,
                    _ => Code::Failed,
                };
                Self::new(text, hint).code(code)
            }
            ClientError::Unreachable { .. } | ClientError::AdminFile { .. } | ClientError::Tls(_) => {
                Self::of(&error, hint).code(Code::Unreachable)
            }
            ClientError::Answer(_) | ClientError::Token => Self::of(&error, hint),
        }
    }
}

impl From<LocalError> for Failure {
    fn from(error: LocalError) -> Self {
        let hint = error.hint();
        let code = match &error {
            LocalError::Refused { status: 409, .. } => Code::Conflict,
            LocalError::Refused { status: 503, .. } | LocalError::Unreachable { .. } => Code::Unreachable,
            LocalError::Refused { .. } | LocalError::Answer(_) | LocalError::Client(_) => Code::Failed,
        };
        let text = match &error {
            LocalError::Refused { .. } => error.to_string(),
            LocalError::Unreachable { .. } | LocalError::Answer(_) | LocalError::Client(_) => chain(&error),
        };
        Self::new(text, hint).code(code)
    }
}

impl From<tenet_lab::Error> for Failure {
    fn from(error: tenet_lab::Error) -> Self {
        use tenet_lab::Error as Lab;
        let hint = match &error {
            Lab::Io { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => "run as root",
            Lab::Net(e) if e.errno() == Some(libc::EPERM) => "run as root",
            Lab::Net(_) | Lab::Io { .. } => "`tenet lab down` removes what is left; then try again",
            Lab::Timeout { .. } => "look at the log; `tenet lab up` removed what it had made",
            Lab::Site(_)
            | Lab::Plan(_)
            | Lab::Exists { .. }
            | Lab::NotThere { .. }
            | Lab::Unknown { .. }
            | Lab::Record { .. }
            | Lab::Api { .. }
            | Lab::Guest { .. }
            | Lab::Leftovers(_) => "",
        };
        let code = match &error {
            Lab::Exists { .. } => Code::Conflict,
            Lab::NotThere { .. } => Code::Unreachable,
            _ => Code::Failed,
        };
        let text = match &error {
            // Its message holds its cause already.
            Lab::Api { .. } => error.to_string(),
            _ => chain(&error),
        };
        Self::new(text, hint).code(code)
    }
}

/// An error with all its causes in one line.
pub fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        // Some errors repeat their cause.
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        next = cause.source();
    }
    text
}
