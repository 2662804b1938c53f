//! A tree of YAML nodes that know their place. Only what a site file needs: no anchors, no tags, one document.

use crate::{Position, Problem};
use saphyr_parser::{Event, Marker, Parser};

/// Nesting beyond this is refused; a site file needs eight levels.
const MAX_DEPTH: usize = 32;

/// A node and its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Node {
    pub at: Position,
    pub value: Value,
}

/// What a node holds. Scalars stay text: their meaning is the reader's.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Value {
    Scalar(String),
    Sequence(Vec<Node>),
    Mapping(Vec<(Key, Node)>),
}

/// A mapping's key and its place.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Key {
    pub at: Position,
    pub text: String,
}

impl Node {
    /// Nothing, or one of YAML's words for it.
    pub fn is_null(&self) -> bool {
        matches!(&self.value, Value::Scalar(s) if s.is_empty() || s == "~" || s == "null")
    }

    /// What it is, for messages.
    pub fn kind(&self) -> &'static str {
        match &self.value {
            Value::Scalar(_) if self.is_null() => "nothing",
            Value::Scalar(_) => "a value",
            Value::Sequence(_) => "a list",
            Value::Mapping(_) => "a mapping",
        }
    }
}

/// A node that is not finished yet.
enum Open {
    Sequence(Position, Vec<Node>),
    Mapping(Position, Vec<(Key, Node)>, Option<Key>),
}

/// Reads the one document of a text; an empty text is an empty scalar.
pub fn read(text: &str) -> Result<Node, Problem> {
    let mut parser = Parser::new_from_str(text);
    let mut open: Vec<Open> = Vec::new();
    let mut root: Option<Node> = None;
    while let Some(event) = parser.next_event() {
        let (event, span) = event.map_err(|e| problem(position(e.marker()), e.info().to_owned()))?;
        let at = position(&span.start);
        let node = match event {
            Event::Nothing | Event::StreamStart | Event::StreamEnd | Event::DocumentEnd => continue,
            Event::DocumentStart(_) if root.is_some() => {
                return Err(problem(at, "a second document begins here: a site file is one document".into()));
            }
            Event::DocumentStart(_) => continue,
            Event::Alias(_) => {
                return Err(problem(at, "aliases are not supported: write the value out".into()));
            }
            Event::SequenceStart(..) => {
                enter(&mut open, Open::Sequence(at, Vec::new()), at)?;
                continue;
            }
            Event::MappingStart(..) => {
                enter(&mut open, Open::Mapping(at, Vec::new(), None), at)?;
                continue;
            }
            Event::Scalar(text, ..) => Node { at, value: Value::Scalar(text.into_owned()) },
            Event::SequenceEnd | Event::MappingEnd => match open.pop() {
                Some(Open::Sequence(at, nodes)) => Node { at, value: Value::Sequence(nodes) },
                Some(Open::Mapping(at, pairs, _)) => Node { at, value: Value::Mapping(pairs) },
                None => continue,
            },
        };
        match open.last_mut() {
            None => root = Some(node),
            Some(Open::Sequence(_, nodes)) => nodes.push(node),
            Some(Open::Mapping(_, pairs, key)) => put(pairs, key, node)?,
        }
    }
    Ok(root.unwrap_or(Node { at: Position { line: 1, column: 1 }, value: Value::Scalar(String::new()) }))
}

fn enter(open: &mut Vec<Open>, node: Open, at: Position) -> Result<(), Problem> {
    if open.len() >= MAX_DEPTH {
        return Err(problem(at, format!("nested deeper than {MAX_DEPTH} levels")));
    }
    open.push(node);
    Ok(())
}

/// A mapping's events alternate between key and value.
fn put(pairs: &mut Vec<(Key, Node)>, key: &mut Option<Key>, node: Node) -> Result<(), Problem> {
    match (key.take(), node.value) {
        (Some(key), value) => pairs.push((key, Node { at: node.at, value })),
        (None, Value::Scalar(text)) => {
            if let Some((first, _)) = pairs.iter().find(|(k, _)| k.text == text) {
                let text = format!("`{text}` stands here twice: remove or rename one");
                let other = Some((first.at, "the first is here".to_owned()));
                return Err(Problem { at: node.at, text, other });
            }
            *key = Some(Key { at: node.at, text });
        }
        (None, Value::Sequence(_) | Value::Mapping(_)) => {
            return Err(problem(node.at, "a key must be plain text".into()));
        }
    }
    Ok(())
}

fn problem(at: Position, text: String) -> Problem {
    Problem { at, text, other: None }
}

/// The parser counts lines from 1 and columns from 0.
fn position(marker: &Marker) -> Position {
    Position { line: marker.line(), column: marker.col() + 1 }
}
