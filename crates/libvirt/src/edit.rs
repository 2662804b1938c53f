//! Edits a domain's XML in place.

use crate::domain::{child, interface_with, marks, name, read, root, with_indent};
use crate::{DomainError, Mark};
use roxmltree::Node;
use std::ops::Range;
use tenet_model::Mac;

/// A NIC as Tenet's ports need it.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Nic {
    /// Its MAC.
    pub mac: Mac,
    /// Its tap, which the agent makes.
    pub device: String,
    /// What the guest is told about packets' size, if it is known.
    pub mtu: Option<u32>,
    /// Kind of a new NIC; one that is there keeps its own.
    pub model: String,
    /// Queues of its tap that it shall open; one that is there keeps its own if none is given, a new one has one.
    pub queues: Option<u16>,
}

/// Children of an interface that say what it is connected to, or that a plain tap does not take.
const CONNECTION: [&str; 8] =
    ["source", "virtualport", "vlan", "filterref", "target", "mtu", "port", "backenddomain"];

/// The element of an interface, as `virsh attach-device` takes it.
#[must_use]
pub fn interface(nic: &Nic) -> String {
    let connection = connection(nic).map(|line| format!("  {line}\n")).collect::<String>();
    let driver = nic.queues.filter(|q| *q > 1).map(|q| format!("  {}\n", driver(q))).unwrap_or_default();
    format!(
        "<interface type='ethernet'>\n  <mac address='{}'/>\n{connection}  <model type='{}'/>\n{driver}</interface>",
        nic.mac,
        escape(&nic.model)
    )
}

/// Puts our element into a domain's metadata, in place of one that is there.
///
/// # Errors
/// [`DomainError`] if the text is no domain.
pub fn set_mark(xml: &str, mark: &Mark) -> Result<String, DomainError> {
    let document = read(xml)?;
    let root = root(&document)?;
    name(root)?;
    let mut edits = Edits::new(xml);
    let element = |indent: &str| indented(&mark.element(), indent);
    let old = marks(root);
    if let Some((first, others)) = old.split_first() {
        edits.replace(first.range(), element(&indent_of(xml, first.range().start)));
        for other in others {
            edits.remove(other.range());
        }
    } else if let Some(metadata) = child(root, "metadata") {
        let indent = indent_of(xml, metadata.range().start);
        let inner = format!("{indent}  ");
        match metadata.last_child() {
            Some(_) => edits.append(metadata, &format!("  {}\n{indent}", element(&inner).trim_start())),
            None => edits.replace(
                metadata.range(),
                format!("<metadata>\n{inner}{}\n{indent}</metadata>", element(&inner)),
            ),
        }
    } else {
        let after = child(root, "uuid").or_else(|| child(root, "name")).ok_or(DomainError::NoName)?;
        let indent = indent_of(xml, after.range().start);
        let inner = format!("{indent}  ");
        let text = format!("\n{indent}<metadata>\n{inner}{}\n{indent}</metadata>", element(&inner));
        edits.insert(after.range().end, text);
    }
    edits.done()
}

/// Connects the interface with the NIC's MAC to the NIC's tap, or adds one if the domain has none with that MAC.
/// What is not about the connection (model, driver, boot order, PCI address) stays.
///
/// # Errors
/// [`DomainError`] if the text is no domain.
pub fn set_interface(xml: &str, nic: &Nic) -> Result<String, DomainError> {
    let document = read(xml)?;
    let root = root(&document)?;
    let mut edits = Edits::new(xml);
    if let Some(old) = interface_with(root, nic.mac) {
        match old.attribute_node("type") {
            Some(ty) => edits.replace(ty.range_value(), "ethernet".to_owned()),
            None => edits.insert(old.range().start + "<interface".len(), " type='ethernet'".to_owned()),
        }
        for part in old.children().filter(|c| CONNECTION.iter().any(|n| c.has_tag_name(*n))) {
            edits.remove(part.range());
        }
        if let Some(mac) = child(old, "mac") {
            let indent = indent_of(xml, mac.range().start);
            let new = nic.queues.filter(|q| *q > 1 && child(old, "driver").is_none()).map(driver);
            let lines = connection(nic).chain(new).map(|line| format!("\n{indent}{line}"));
            edits.insert(mac.range().end, lines.collect());
        }
        if let (Some(queues), Some(driver)) = (nic.queues, child(old, "driver")) {
            match driver.attribute_node("queues") {
                Some(there) => edits.replace(there.range_value(), queues.to_string()),
                None if queues == 1 => {}
                None => {
                    edits.insert(driver.range().start + "<driver".len(), format!(" queues='{queues}'"));
                }
            }
        }
    } else {
        let domain = name(root)?;
        let devices = child(root, "devices").ok_or(DomainError::NoDevices { domain })?;
        let indent = indent_of(xml, devices.range().start);
        let inner = format!("{indent}  ");
        let element = indented(&interface(nic), &inner);
        match devices.last_child() {
            Some(_) => edits.append(devices, &format!("  {element}\n{indent}")),
            None => {
                edits.replace(devices.range(), format!("<devices>\n{inner}{element}\n{indent}</devices>"));
            }
        }
    }
    edits.done()
}

/// Gives the interface with a MAC another tap and nothing else: for a domain on its way to a host that has named it so.
///
/// # Errors
/// [`DomainError`] if the text is no domain or has no such interface with a `<target>`.
pub fn set_target(xml: &str, mac: Mac, device: &str) -> Result<String, DomainError> {
    let document = read(xml)?;
    let root = root(&document)?;
    let target = interface_with(root, mac).and_then(|i| child(i, "target"));
    let Some(value) = target.and_then(|t| t.attribute_node("dev")) else {
        return Err(DomainError::NoInterface { domain: name(root)?, mac, there: Vec::new() });
    };
    let mut edits = Edits::new(xml);
    edits.replace(value.range_value(), escape(device));
    edits.done()
}

fn driver(queues: u16) -> String {
    format!("<driver queues='{queues}'/>")
}

fn connection(nic: &Nic) -> impl Iterator<Item = String> {
    let target = format!("<target dev='{}' managed='no'/>", escape(&nic.device));
    [Some(target), nic.mtu.map(|mtu| format!("<mtu size='{mtu}'/>"))].into_iter().flatten()
}

/// Changes of a text, put in at the end, so that places stay what they are while changes are collected.
struct Edits<'a> {
    text: &'a str,
    all: Vec<(Range<usize>, String)>,
}

impl<'a> Edits<'a> {
    fn new(text: &'a str) -> Self {
        Self { text, all: Vec::new() }
    }

    fn replace(&mut self, range: Range<usize>, with: String) {
        self.all.push((range, with));
    }

    fn insert(&mut self, at: usize, text: String) {
        self.all.push((at..at, text));
    }

    fn remove(&mut self, range: Range<usize>) {
        self.all.push((with_indent(self.text, range), String::new()));
    }

    /// Before an element's end tag; behind the white space that stands there.
    fn append(&mut self, element: Node<'_, '_>, text: &str) {
        // An element with children has an end tag.
        let range = element.range();
        let end = self.text[range.clone()].rfind("</").map_or(range.end, |at| range.start + at);
        self.insert(end, text.to_owned());
    }

    /// The text with all changes; read once more, so that nothing half-right leaves us.
    fn done(mut self) -> Result<String, DomainError> {
        self.all.sort_by_key(|(range, _)| (range.start, range.end));
        let mut out = String::with_capacity(self.text.len() + 512);
        let mut at = 0;
        for (range, with) in &self.all {
            // Two removals may share the white space between them.
            let start = range.start.max(at);
            out.push_str(&self.text[at..start]);
            out.push_str(with);
            at = range.end.max(at);
        }
        out.push_str(&self.text[at..]);
        read(&out)?;
        Ok(out)
    }
}

/// The white space that a line begins with.
fn indent_of(text: &str, at: usize) -> String {
    let line = text[..at].rfind('\n').map_or(0, |n| n + 1);
    text[line..at].chars().take_while(|c| *c == ' ' || *c == '\t').collect()
}

/// All lines but the first moved in.
fn indented(text: &str, by: &str) -> String {
    text.replace('\n', &format!("\n{by}"))
}

fn escape(text: &str) -> String {
    text.replace('&', "&amp;").replace('<', "&lt;").replace('\'', "&apos;").replace('"', "&quot;")
}
