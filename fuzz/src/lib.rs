//! What the fuzzers of text and messages run; `tests/tests/corpus.rs` runs the same on stable Rust.
//!
//! Each function takes any bytes and must come back: a parser may refuse, never panic, and what it accepts it must
//! accept again in the form that it writes itself.

use prost::Message as _;

/// Any text as a site file; what is accepted is written and read back with the same meaning.
pub fn site_file(bytes: &[u8]) {
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    let Ok(site) = tenet_site::parse("fuzz", text) else { return };
    let again: Vec<_> = site.specs().into_iter().map(|(spec, _)| spec).collect();
    assert_eq!(again.len(), site.puts().len(), "an object has no place in:\n{text}");
}

/// Any bytes as a message of either side of the agents' protocol.
pub fn agent_protocol(bytes: &[u8]) {
    use tenet_api::agent::{AgentMessage, ControllerMessage, controller_message};
    if let Ok(message) = AgentMessage::decode(bytes) {
        assert_eq!(AgentMessage::decode(&*message.encode_to_vec()), Ok(message));
    }
    let Ok(message) = ControllerMessage::decode(bytes) else { return };
    match message.message {
        Some(controller_message::Message::Full(full)) => drop(full.into_rows()),
        Some(controller_message::Message::Delta(delta)) => {
            if let Ok(delta) = tenet_compile::Delta::try_from(delta) {
                let mut rows = tenet_compile::Rows::default();
                rows.apply(&delta);
                drop(tenet_compile::digests(&rows));
            }
        }
        _ => {}
    }
}

/// Any bytes as the body of a request.
pub fn rest_body(bytes: &[u8]) {
    use tenet_api::rest;
    let changes: Result<rest::ChangesRequest, _> = serde_json::from_slice(bytes);
    if let Ok(request) = changes {
        let text = serde_json::to_vec(&request).expect("what was read can be written");
        assert_eq!(serde_json::from_slice::<rest::ChangesRequest>(&text).ok(), Some(request));
    }
    serde_json::from_slice::<rest::CreateVm>(bytes).ok();
    serde_json::from_slice::<rest::Attach>(bytes).ok();
    serde_json::from_slice::<rest::Migrate>(bytes).ok();
    serde_json::from_slice::<rest::Join>(bytes).ok();
    serde_json::from_slice::<rest::TokenRequest>(bytes).ok();
    serde_json::from_slice::<tenet_model::Object>(bytes).ok();
}

/// Any text as a name, a path of names, a MAC, a method or a join token; what is accepted is shown as it was read.
pub fn names(bytes: &[u8]) {
    use tenet_model::{Mac, Method, Name, NetworkRef, PortRef, SubnetRef, VmRef};
    fn check<T: std::str::FromStr + std::fmt::Display + PartialEq>(text: &str) {
        if let Ok(value) = text.parse::<T>() {
            assert!(value.to_string().parse::<T>().is_ok_and(|again| again == value), "{text}");
        }
    }
    let Ok(text) = std::str::from_utf8(bytes) else { return };
    check::<Name>(text);
    check::<NetworkRef>(text);
    check::<SubnetRef>(text);
    check::<VmRef>(text);
    check::<PortRef>(text);
    check::<Mac>(text);
    check::<Method>(text);
    text.parse::<tenet_api::client::JoinToken>().ok();
}
