//! A domain, as far as Tenet reads it.

use crate::{Mark, MarkError, NAMESPACE};
use roxmltree::{Document, Node};
use std::ops::Range;
use tenet_model::Mac;

/// Why a text is not a domain that we can work with.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum DomainError {
    /// It is no XML.
    #[error("the domain's description is no well-formed XML: {0}")]
    Xml(String),
    /// Its root is another element.
    #[error("the description begins with <{found}> where <domain> is expected")]
    Root {
        /// The element's name.
        found: String,
    },
    /// It has no name.
    #[error("the domain has no <name>")]
    NoName,
    /// It has no devices, so that there is no place for an interface.
    #[error("domain {domain} has no <devices>")]
    NoDevices {
        /// The domain.
        domain: String,
    },
    /// There is no interface with that MAC.
    #[error("domain {domain} has no interface with MAC {mac}{}", has(.there))]
    NoInterface {
        /// The domain.
        domain: String,
        /// The MAC.
        mac: Mac,
        /// The MACs that it has.
        there: Vec<Mac>,
    },
    /// Our element in its metadata is wrong.
    #[error("domain {domain}: {source}")]
    Mark {
        /// The domain.
        domain: String,
        /// What is wrong.
        source: MarkError,
    },
}

fn has(there: &[Mac]) -> String {
    let macs: Vec<_> = there.iter().map(Mac::to_string).collect();
    if macs.is_empty() {
        " (it has none at all)".to_owned()
    } else {
        format!(" (it has {})", macs.join(", "))
    }
}

/// A domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Domain {
    /// Its name.
    pub name: String,
    /// Its UUID, if it has one yet.
    pub uuid: Option<String>,
    /// Whose VM it is, if it is one of Tenet's.
    pub mark: Option<Mark>,
    /// Its NICs.
    pub interfaces: Vec<Interface>,
}

/// What a NIC is connected to.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub enum Source {
    /// One of libvirt's own networks.
    Network(String),
    /// A bridge of the host.
    Bridge(String),
    /// A device of the host, directly.
    Direct(String),
    /// A tap and nothing else: what Tenet needs.
    Ethernet,
    /// Anything else, by the name of its type.
    Other(String),
}

/// A NIC of a domain.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Interface {
    /// Its MAC, if it has one yet.
    pub mac: Option<Mac>,
    /// What it is connected to.
    pub source: Source,
    /// VLAN tag, if it has exactly one.
    pub vlan: Option<u16>,
    /// Name of its tap.
    pub device: Option<String>,
    /// Whether libvirt makes the tap itself.
    pub managed: bool,
    /// Kind of the NIC: `virtio`, `e1000`.
    pub model: Option<String>,
    /// Queues of its tap that libvirt opens.
    pub queues: u16,
}

impl Domain {
    /// Reads a domain's XML.
    ///
    /// # Errors
    /// [`DomainError`], if it is none or what is ours in it is wrong.
    pub fn parse(xml: &str) -> Result<Self, DomainError> {
        let document = read(xml)?;
        let root = root(&document)?;
        let name = name(root)?;
        let mark = marks(root);
        let mark = match mark.as_slice() {
            [] => None,
            [one] => Some(Mark::read(*one)),
            [_, another, ..] => {
                Some(Err(MarkError::Twice { line: document.text_pos_at(another.range().start).row }))
            }
        };
        let mark = mark.transpose().map_err(|source| DomainError::Mark { domain: name.clone(), source })?;
        Ok(Self {
            uuid: child(root, "uuid").and_then(text),
            mark,
            interfaces: interfaces(root).map(Interface::read).collect(),
            name,
        })
    }

    /// The interface with a MAC.
    ///
    /// # Errors
    /// [`DomainError::NoInterface`] if there is none.
    pub fn interface(&self, mac: Mac) -> Result<&Interface, DomainError> {
        self.interfaces.iter().find(|i| i.mac == Some(mac)).ok_or_else(|| DomainError::NoInterface {
            domain: self.name.clone(),
            mac,
            there: self.interfaces.iter().filter_map(|i| i.mac).collect(),
        })
    }
}

impl Interface {
    fn read(node: Node<'_, '_>) -> Self {
        let source = child(node, "source");
        let from = |attribute| source.and_then(|s| s.attribute(attribute)).unwrap_or_default().to_owned();
        let target = child(node, "target");
        let model = child(node, "model").and_then(|m| m.attribute("type"));
        let queues = child(node, "driver").and_then(|d| d.attribute("queues")).and_then(|q| q.parse().ok());
        let tags = child(node, "vlan").map(|v| v.children().filter(|c| c.has_tag_name("tag")).collect());
        let tags: Vec<Node<'_, '_>> = tags.unwrap_or_default();
        Self {
            mac: child(node, "mac").and_then(|m| m.attribute("address")).and_then(|m| m.parse().ok()),
            source: match node.attribute("type").unwrap_or_default() {
                "network" => Source::Network(from("network")),
                "bridge" => Source::Bridge(from("bridge")),
                "direct" => Source::Direct(from("dev")),
                "ethernet" => Source::Ethernet,
                other => Source::Other(other.to_owned()),
            },
            vlan: match tags.as_slice() {
                [one] => one.attribute("id").and_then(|id| id.parse().ok()),
                _ => None,
            },
            device: target.and_then(|t| t.attribute("dev")).map(str::to_owned),
            managed: target.and_then(|t| t.attribute("managed")) != Some("no"),
            // libvirt passes over what it says of other models.
            queues: queues.filter(|q| *q > 0 && model.is_some_and(|m| m.starts_with("virtio"))).unwrap_or(1),
            model: model.map(str::to_owned),
        }
    }
}

/// Takes XML apart; without document type declarations, so that no entity can blow it up.
pub(crate) fn read(xml: &str) -> Result<Document<'_>, DomainError> {
    Document::parse(xml).map_err(|e| DomainError::Xml(e.to_string()))
}

pub(crate) fn root<'a, 'i>(document: &'a Document<'i>) -> Result<Node<'a, 'i>, DomainError> {
    let root = document.root_element();
    if root.has_tag_name("domain") {
        return Ok(root);
    }
    Err(DomainError::Root { found: root.tag_name().name().to_owned() })
}

pub(crate) fn name(root: Node<'_, '_>) -> Result<String, DomainError> {
    child(root, "name").and_then(text).ok_or(DomainError::NoName)
}

/// Elements of ours in a domain's metadata; one is right.
pub(crate) fn marks<'a, 'i>(root: Node<'a, 'i>) -> Vec<Node<'a, 'i>> {
    let Some(metadata) = child(root, "metadata") else { return Vec::new() };
    metadata.children().filter(|c| c.is_element() && c.tag_name().namespace() == Some(NAMESPACE)).collect()
}

pub(crate) fn interfaces<'a, 'i: 'a>(root: Node<'a, 'i>) -> impl Iterator<Item = Node<'a, 'i>> {
    child(root, "devices").into_iter().flat_map(|d| d.children()).filter(|c| c.has_tag_name("interface"))
}

/// The interface element with a MAC.
pub(crate) fn interface_with<'a, 'i: 'a>(root: Node<'a, 'i>, mac: Mac) -> Option<Node<'a, 'i>> {
    interfaces(root).find(|i| {
        let address = child(*i, "mac").and_then(|m| m.attribute("address"));
        address.and_then(|a| a.parse().ok()) == Some(mac)
    })
}

/// The first child element of that name, in no namespace.
pub(crate) fn child<'a, 'i>(of: Node<'a, 'i>, name: &str) -> Option<Node<'a, 'i>> {
    of.children().find(|c| c.has_tag_name(name))
}

fn text(node: Node<'_, '_>) -> Option<String> {
    node.text().map(|t| t.trim().to_owned()).filter(|t| !t.is_empty())
}

/// An element with the white space before it, so that taking it out leaves no empty line.
pub(crate) fn with_indent(xml: &str, range: Range<usize>) -> Range<usize> {
    let before = &xml[..range.start];
    before.trim_end_matches([' ', '\t', '\n', '\r']).len()..range.end
}
