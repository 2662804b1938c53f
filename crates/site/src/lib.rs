//! Site files: the YAML form of a site's objects, with the place of everything in the file.
//!
//! Three things to know: [`Site`] (the objects of a file, each with its [`Position`]), [`parse`] and [`write()`].
//! Must never talk to a controller: comparing a site with what is there works on values given to it.

mod object;
mod parse;
mod write;
mod yaml;

pub use object::{At, Site, key};
pub use parse::parse;
pub use write::write;

use std::fmt;

/// A place in a file.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, Default)]
pub struct Position {
    /// Line, from 1.
    pub line: usize,
    /// Column in characters, from 1.
    pub column: usize,
}

impl fmt::Display for Position {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.line, self.column)
    }
}

/// Something wrong in a site file.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Problem {
    /// Where.
    pub at: Position,
    /// What, and what to do about it.
    pub text: String,
    /// The other object concerned: where it stands and what it is.
    pub other: Option<(Position, String)>,
}

/// Everything wrong in a site file, in the order of the lines.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub struct SiteError {
    /// Name of the file, as it was given.
    pub file: String,
    /// What is wrong; at least one.
    pub problems: Vec<Problem>,
}

impl fmt::Display for SiteError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (n, problem) in self.problems.iter().enumerate() {
            if n > 0 {
                writeln!(f)?;
            }
            write!(f, "{}:{}: {}", self.file, problem.at, problem.text)?;
            if let Some((at, text)) = &problem.other {
                write!(f, "\n{}:{at}: {text}", self.file)?;
            }
        }
        Ok(())
    }
}
