//! Subnets: one or two prefixes, in a short and a long form.

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use std::{borrow::Cow, net::IpAddr, str::FromStr};
use tenet_model::{SubnetRef, Vsid};
use utoipa::{
    PartialSchema, ToSchema,
    openapi::{RefOr, Schema},
};

/// A subnet, as asked for.
///
/// As JSON it may say `prefix` and `gateway` in place of `prefixes`.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(try_from = "SubnetForm")]
pub struct SubnetSpec {
    /// Its name.
    pub name: SubnetRef,
    /// Its number on the wire, 4096 to 16777214; the lowest free one if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub vsid: Option<Vsid>,
    /// Its prefixes: one of IPv4, one of IPv6, or both.
    pub prefixes: Vec<PrefixSpec>,
}

/// A prefix of a subnet, as asked for.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize)]
#[serde(from = "PrefixForm")]
pub struct PrefixSpec {
    /// The prefix.
    pub prefix: IpNet,
    /// The gateway's address; the first of the prefix if omitted.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub gateway: Option<IpAddr>,
}

/// A subnet, as asked for: with `prefix` (and perhaps `gateway`) if it has one prefix, or with `prefixes`.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct SubnetForm {
    /// Its name.
    #[schema(value_type = String, example = "contoso/blue/web")]
    name: SubnetRef,
    /// Its number on the wire, 4096 to 16777214; the lowest free one if omitted.
    #[serde(default)]
    #[schema(value_type = Option<u32>)]
    vsid: Option<Vsid>,
    /// Its prefix, if it has one.
    #[serde(default)]
    #[schema(value_type = Option<String>, example = "10.1.1.0/24")]
    prefix: Option<IpNet>,
    /// The gateway's address, with `prefix`; the first of the prefix if omitted.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    gateway: Option<IpAddr>,
    /// Its prefixes: one of IPv4, one of IPv6, or both.
    #[serde(default)]
    prefixes: Vec<PrefixForm>,
}

/// A prefix alone, or with its gateway.
#[derive(Deserialize, ToSchema)]
#[serde(untagged)]
enum PrefixForm {
    /// The prefix; the gateway is its first address.
    Plain(PlainPrefix),
    /// The prefix and the gateway's address.
    Full(FullPrefix),
}

/// A prefix; the gateway is its first address.
#[derive(Deserialize, ToSchema)]
#[schema(value_type = String, example = "fd00:1::/64")]
struct PlainPrefix(IpNet);

/// A prefix and its gateway.
#[derive(Deserialize, ToSchema)]
#[serde(deny_unknown_fields)]
struct FullPrefix {
    /// The prefix.
    #[schema(value_type = String, example = "10.1.1.0/24")]
    prefix: IpNet,
    /// The gateway's address; the first of the prefix if omitted.
    #[serde(default)]
    #[schema(value_type = Option<String>)]
    gateway: Option<IpAddr>,
}

/// With the gateway at its first address.
impl From<IpNet> for PrefixSpec {
    fn from(prefix: IpNet) -> Self {
        Self { prefix, gateway: None }
    }
}

impl FromStr for PrefixSpec {
    type Err = ipnet::AddrParseError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        text.parse::<IpNet>().map(Self::from)
    }
}

impl From<PrefixForm> for PrefixSpec {
    fn from(form: PrefixForm) -> Self {
        match form {
            PrefixForm::Plain(PlainPrefix(prefix)) => prefix.into(),
            PrefixForm::Full(FullPrefix { prefix, gateway }) => Self { prefix, gateway },
        }
    }
}

impl TryFrom<SubnetForm> for SubnetSpec {
    type Error = &'static str;

    fn try_from(form: SubnetForm) -> Result<Self, Self::Error> {
        let prefixes = match (form.prefix, form.prefixes.is_empty()) {
            (Some(prefix), true) => vec![PrefixSpec { prefix, gateway: form.gateway }],
            (None, false) if form.gateway.is_none() => form.prefixes.into_iter().map(Into::into).collect(),
            (None, false) => return Err("with `prefixes`, each gateway stands with its prefix"),
            (Some(_), false) => return Err("a subnet has `prefix` or `prefixes`, not both"),
            (None, true) => return Err("a subnet needs `prefix` or `prefixes`"),
        };
        Ok(Self { name: form.name, vsid: form.vsid, prefixes })
    }
}

impl PartialSchema for SubnetSpec {
    fn schema() -> RefOr<Schema> {
        SubnetForm::schema()
    }
}

impl ToSchema for SubnetSpec {
    fn name() -> Cow<'static, str> {
        Cow::Borrowed("SubnetSpec")
    }

    fn schemas(schemas: &mut Vec<(String, RefOr<Schema>)>) {
        SubnetForm::schemas(schemas);
    }
}

/// A subnet.
#[derive(Clone, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct SubnetView {
    /// Its name.
    #[schema(value_type = String)]
    pub name: SubnetRef,
    /// Its number on the wire.
    #[schema(value_type = u32)]
    pub vsid: Vsid,
    /// Its prefixes: one of IPv4, one of IPv6, or both.
    pub prefixes: Vec<PrefixView>,
    /// Revision that wrote it.
    pub revision: u64,
}

/// A prefix of a subnet.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Serialize, Deserialize, ToSchema)]
pub struct PrefixView {
    /// The prefix.
    #[schema(value_type = String)]
    pub prefix: IpNet,
    /// The gateway's address.
    #[schema(value_type = String)]
    pub gateway: IpAddr,
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<SubnetSpec, String> {
        serde_json::from_str(text).map_err(|e| e.to_string())
    }

    #[test]
    fn all_forms_of_a_subnet_mean_the_same() {
        let long = read(
            r#"{"name":"a/n/s","prefixes":[{"prefix":"10.0.0.0/24","gateway":"10.0.0.9"},"fd00::/64"]}"#,
        );
        let long = long.unwrap();
        assert_eq!(long.prefixes.len(), 2);
        assert_eq!(long.prefixes[1], PrefixSpec { prefix: "fd00::/64".parse().unwrap(), gateway: None });
        let short =
            read(r#"{"name":"a/n/s","vsid":5001,"prefix":"10.0.0.0/24","gateway":"10.0.0.9"}"#).unwrap();
        assert_eq!(short.prefixes, long.prefixes[..1]);
        for spec in [long, short] {
            assert_eq!(read(&serde_json::to_string(&spec).unwrap()).unwrap(), spec);
        }
        for (text, why) in [
            (r#"{"name":"a/n/s"}"#, "needs `prefix` or `prefixes`"),
            (r#"{"name":"a/n/s","prefix":"10.0.0.0/24","prefixes":["fd00::/64"]}"#, "not both"),
            (r#"{"name":"a/n/s","prefixes":["fd00::/64"],"gateway":"fd00::1"}"#, "stands with its prefix"),
            (r#"{"name":"a/n/s","prefix":"10.0.0.0/24","more":1}"#, "unknown field"),
            (r#"{"name":"a/n/s","prefixes":[{"prefix":"10.0.0.0/24","more":1}]}"#, "did not match"),
        ] {
            let error = read(text).unwrap_err();
            assert!(error.contains(why), "{text}: {error}");
        }
    }
}
