//! The agents' protocol, generated from `proto/agent.proto`.

#![expect(missing_docs, reason = "generated code; the descriptions stand in the proto file")]
#![expect(clippy::allow_attributes_without_reason, clippy::doc_markdown, reason = "generated code")]

tonic::include_proto!("tenet.agent.v1");

/// Largest message that either side accepts, in bytes: the full state of a host with a hundred thousand records.
pub const MAX_MESSAGE: usize = 32 << 20;
