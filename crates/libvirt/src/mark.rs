//! Tenet's own element in a domain's `<metadata>`: whose VM this is, and which of its interfaces are which ports.
//!
//! ```xml
//! <tenet:vm xmlns:tenet="urn:tenet:libvirt:1" name="contoso/sql">
//!   <tenet:port name="eth0" mac="52:54:00:00:00:01" network="contoso/blue" subnet="web" address="10.1.1.11"/>
//! </tenet:vm>
//! ```

use crate::{NAMESPACE, PREFIX};
use roxmltree::Node;
use std::{fmt::Write as _, net::IpAddr};
use tenet_model::{Mac, Name, NetworkRef, PortRef, SubnetRef, VmRef};

/// What is wrong in our element; each says how it should read.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
pub enum MarkError {
    /// There is a second one.
    #[error("its metadata has a second element of Tenet's in line {line}: one <tenet:vm> is right")]
    Twice {
        /// Where.
        line: u32,
    },
    /// An element that we do not know.
    #[error("its metadata has <{found}> of Tenet's: <tenet:vm> with <tenet:port> in it is right")]
    Element {
        /// Its name.
        found: String,
    },
    /// An attribute is missing.
    #[error("<tenet:{element}> lacks {attribute}=\"{form}\"")]
    Missing {
        /// Element.
        element: &'static str,
        /// Attribute.
        attribute: &'static str,
        /// An example of what it should be.
        form: &'static str,
    },
    /// An attribute that we do not know.
    #[error("<tenet:{element}> has an attribute {attribute}, which means nothing: take it out")]
    Unknown {
        /// Element.
        element: &'static str,
        /// Attribute.
        attribute: String,
    },
    /// An attribute is not what it should be.
    #[error("<tenet:{element} {attribute}=\"{value}\">: {why}; it should read as {form}")]
    Value {
        /// Element.
        element: &'static str,
        /// Attribute.
        attribute: &'static str,
        /// What stands there.
        value: String,
        /// What is wrong with it.
        why: String,
        /// An example of what it should be.
        form: &'static str,
    },
    /// Of network and subnet, only one is given, or the network is another tenant's.
    #[error("<tenet:port name=\"{port}\">: {why}")]
    Port {
        /// The port.
        port: Name,
        /// What is wrong with it.
        why: String,
    },
}

/// Whose VM a domain is.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Mark {
    /// The VM.
    pub vm: VmRef,
    /// Its ports, in the order in which they stand. None at all: the site knows them by their MACs.
    pub ports: Vec<MarkedPort>,
}

/// Which of a domain's interfaces is which port.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct MarkedPort {
    /// The port's name.
    pub name: Name,
    /// The MAC of the interface and the port.
    pub mac: Mac,
    /// The subnet, by which the port is made where the site does not have it yet.
    pub subnet: Option<SubnetRef>,
    /// The addresses that it shall then have; chosen if there are none.
    pub addresses: Vec<IpAddr>,
}

impl Mark {
    /// The full name of one of its ports.
    #[must_use]
    pub fn port(&self, name: &Name) -> PortRef {
        PortRef { tenant: self.vm.tenant.clone(), vm: self.vm.vm.clone(), port: name.clone() }
    }

    /// Puts a port in, in place of the one with that name or MAC.
    pub fn put(&mut self, port: MarkedPort) {
        self.ports.retain(|p| p.name != port.name && p.mac != port.mac);
        self.ports.push(port);
    }

    pub(crate) fn read(node: Node<'_, '_>) -> Result<Self, MarkError> {
        if node.tag_name().name() != "vm" {
            return Err(MarkError::Element { found: node.tag_name().name().to_owned() });
        }
        known(node, "vm", &["name"])?;
        let vm: VmRef = required(node, "vm", "name", "contoso/sql")?;
        let mut ports: Vec<MarkedPort> = Vec::new();
        for child in node.children().filter(Node::is_element) {
            // `virsh metadata` may have put only the outer element into our namespace.
            let ours = child.tag_name().namespace().is_none_or(|n| n == NAMESPACE);
            if !ours || child.tag_name().name() != "port" {
                return Err(MarkError::Element { found: child.tag_name().name().to_owned() });
            }
            let port = MarkedPort::read(child, &vm)?;
            if ports.iter().any(|p| p.name == port.name || p.mac == port.mac) {
                let why = "another port of the domain has its name or MAC: each stands once".to_owned();
                return Err(MarkError::Port { port: port.name, why });
            }
            ports.push(port);
        }
        Ok(Self { vm, ports })
    }

    /// The element, as it stands in a domain.
    #[must_use]
    pub fn element(&self) -> String {
        self.write(&format!("{PREFIX}:"), &format!(" xmlns:{PREFIX}=\"{NAMESPACE}\""))
    }

    /// The element as `virsh metadata --set` takes it, which adds the namespace itself.
    #[must_use]
    pub fn bare(&self) -> String {
        self.write("", "")
    }

    fn write(&self, prefix: &str, namespace: &str) -> String {
        let mut out = format!("<{prefix}vm{namespace} name=\"{}\"", self.vm);
        if self.ports.is_empty() {
            return out + "/>";
        }
        out.push('>');
        // Names, MACs and addresses have no character that XML would take for its own.
        for port in &self.ports {
            _ = write!(out, "\n  <{prefix}port name=\"{}\" mac=\"{}\"", port.name, port.mac);
            if let Some(subnet) = &port.subnet {
                _ = write!(out, " network=\"{}\" subnet=\"{}\"", subnet.network_ref(), subnet.subnet);
            }
            if !port.addresses.is_empty() {
                let all: Vec<_> = port.addresses.iter().map(ToString::to_string).collect();
                _ = write!(out, " address=\"{}\"", all.join(" "));
            }
            out.push_str("/>");
        }
        out + &format!("\n</{prefix}vm>")
    }
}

impl MarkedPort {
    fn read(node: Node<'_, '_>, vm: &VmRef) -> Result<Self, MarkError> {
        known(node, "port", &["name", "mac", "network", "subnet", "address"])?;
        let name: Name = required(node, "port", "name", "eth0")?;
        let mac: Mac = required(node, "port", "mac", "52:54:00:00:00:01")?;
        let wrong = |why: String| MarkError::Port { port: name.clone(), why };
        let network: Option<NetworkRef> = optional(node, "port", "network", "contoso/blue")?;
        let subnet: Option<Name> = optional(node, "port", "subnet", "web")?;
        let subnet = match (network, subnet) {
            (None, None) => None,
            (Some(n), Some(subnet)) if n.tenant == vm.tenant => {
                Some(SubnetRef { tenant: n.tenant, network: n.network, subnet })
            }
            (Some(n), Some(_)) => {
                let (theirs, ours) = (n.tenant, &vm.tenant);
                return Err(wrong(format!(
                    "network is tenant {theirs}'s and the VM tenant {ours}'s: both are of one tenant"
                )));
            }
            (Some(_), None) => return Err(wrong("network is given without subnet: give both".to_owned())),
            (None, Some(_)) => return Err(wrong("subnet is given without network: give both".to_owned())),
        };
        let mut addresses = Vec::new();
        for one in node.attribute("address").unwrap_or_default().split_ascii_whitespace() {
            addresses.push(value(one, "port", "address", "10.1.1.11, or several with spaces between")?);
        }
        Ok(Self { name, mac, subnet, addresses })
    }
}

fn required<T>(
    node: Node<'_, '_>,
    element: &'static str,
    attribute: &'static str,
    form: &'static str,
) -> Result<T, MarkError>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    optional(node, element, attribute, form)?.ok_or(MarkError::Missing { element, attribute, form })
}

fn optional<T>(
    node: Node<'_, '_>,
    element: &'static str,
    attribute: &'static str,
    form: &'static str,
) -> Result<Option<T>, MarkError>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    node.attribute(attribute).map(|text| value(text, element, attribute, form)).transpose()
}

fn value<T>(
    text: &str,
    element: &'static str,
    attribute: &'static str,
    form: &'static str,
) -> Result<T, MarkError>
where
    T: std::str::FromStr<Err: std::fmt::Display>,
{
    text.parse().map_err(|e: T::Err| MarkError::Value {
        element,
        attribute,
        value: text.to_owned(),
        why: e.to_string(),
        form,
    })
}

fn known(node: Node<'_, '_>, element: &'static str, names: &[&str]) -> Result<(), MarkError> {
    match node.attributes().find(|a| a.namespace().is_none() && !names.contains(&a.name())) {
        Some(a) => Err(MarkError::Unknown { element, attribute: a.name().to_owned() }),
        None => Ok(()),
    }
}
