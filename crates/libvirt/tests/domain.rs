//! Reading and editing domains.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use tenet_libvirt::{Domain, Mark, MarkedPort, Nic, Source, interface, set_interface, set_mark, set_target};
use tenet_model::Mac;

const BRIDGED: &str = include_str!("bridged.xml");
const OURS: &str = include_str!("ours.xml");

fn mac(text: &str) -> Mac {
    text.parse().unwrap()
}

fn mark() -> Mark {
    Mark {
        vm: "contoso/sql".parse().unwrap(),
        ports: vec![MarkedPort {
            name: "eth0".parse().unwrap(),
            mac: mac("52:54:00:00:00:01"),
            subnet: Some("contoso/blue/web".parse().unwrap()),
            addresses: vec!["10.1.1.11".parse().unwrap(), "fd00::11".parse().unwrap()],
        }],
    }
}

fn nic() -> Nic {
    Nic {
        mac: mac("52:54:00:00:00:01"),
        device: "tn0123456789a".into(),
        mtu: Some(1458),
        model: "virtio".into(),
        queues: None,
    }
}

#[test]
fn queues_are_kept_or_set_as_asked() {
    let with =
        |driver: &str| OURS.replace("<model type='virtio'/>", &format!("<model type='virtio'/>{driver}"));
    let queues = |xml: &str, asked: Option<u16>| {
        let out = tenet_libvirt::set_interface(xml, &Nic { queues: asked, ..nic() }).unwrap();
        Domain::parse(&out).unwrap().interface(nic().mac).unwrap().queues
    };
    for (driver, asked, has) in [
        ("", None, 1),
        ("", Some(4), 4),
        ("<driver name='vhost' queues='4'/>", None, 4),
        ("<driver name='vhost' queues='4'/>", Some(2), 2),
        ("<driver name='vhost' queues='4'/>", Some(1), 1),
        ("<driver name='vhost'/>", Some(8), 8),
        ("<driver name='vhost'><host mrg_rxbuf='off'/></driver>", Some(8), 8),
    ] {
        assert_eq!(queues(&with(driver), asked), has, "{driver} {asked:?}");
    }
    let new = Nic { mac: mac("52:54:00:00:00:77"), queues: Some(4), ..nic() };
    let out = tenet_libvirt::set_interface(OURS, &new).unwrap();
    assert_eq!(Domain::parse(&out).unwrap().interface(new.mac).unwrap().queues, 4);
}

#[test]
fn reads_what_nics_are_connected_to() {
    let domain = Domain::parse(BRIDGED).unwrap();
    assert_eq!(domain.name, "sql-1");
    assert_eq!(domain.uuid.as_deref(), Some("c7a5fdbd-cdaf-9455-926a-d65c16db1809"));
    assert_eq!(domain.mark, None);
    let sources: Vec<_> = domain.interfaces.iter().map(|i| (i.source.clone(), i.vlan, i.managed)).collect();
    assert_eq!(
        sources,
        [
            (Source::Bridge("br0".into()), Some(10), true),
            (Source::Network("default".into()), None, true),
            (Source::Ethernet, None, false),
            (Source::Other("user".into()), None, true),
        ]
    );
    assert_eq!(domain.interfaces[2].device.as_deref(), Some("tap7"));
    assert_eq!(domain.interface(mac("52:54:00:00:00:01")).unwrap().model.as_deref(), Some("e1000e"));
    let error = domain.interface(mac("52:54:00:00:00:99")).unwrap_err().to_string();
    assert!(error.contains("sql-1") && error.contains("52:54:00:00:00:99"), "{error}");
    assert!(error.contains("it has 52:54:00:00:00:01"), "{error}");
}

#[test]
fn reads_the_mark_with_any_prefix() {
    let domain = Domain::parse(OURS).unwrap();
    assert_eq!(domain.mark, Some(mark()));
    let other = OURS.replace("<tenet:", "<x:").replace("</tenet:", "</x:").replace("xmlns:tenet", "xmlns:x");
    assert_eq!(Domain::parse(&other).unwrap(), domain);
    // As `virsh metadata --set` may leave it: the inner elements in no namespace.
    let bare = OURS.replace("<tenet:port", "<port");
    assert_eq!(Domain::parse(&bare).unwrap(), domain);
}

#[test]
fn a_wrong_mark_says_what_is_wrong() {
    let cases = [
        ("name=\"contoso/sql\"", "name=\"sql\"", "should read TENANT/VM"),
        ("name=\"contoso/sql\"", "", "lacks name="),
        ("name=\"contoso/sql\"", "name=\"contoso/sql\" host=\"h1\"", "attribute host, which means nothing"),
        ("mac=\"52:54:00:00:00:01\"", "mac=\"52:54\"", "52:54"),
        ("mac=\"52:54:00:00:00:01\"", "", "lacks mac=\"52:54:00:00:00:01\""),
        ("network=\"contoso/blue\"", "", "subnet is given without network"),
        ("subnet=\"web\"", "", "network is given without subnet"),
        ("network=\"contoso/blue\"", "network=\"fabrikam/blue\"", "both are of one tenant"),
        ("address=\"10.1.1.11 fd00::11\"", "address=\"10.1.1\"", "10.1.1"),
        ("<tenet:port name", "<tenet:nic name", "<nic> of Tenet's"),
        (
            "</tenet:vm>",
            "</tenet:vm><tenet:vm xmlns:tenet=\"urn:tenet:libvirt:1\" name=\"a/b\"/>",
            "a second element",
        ),
        (
            "</tenet:vm>",
            "<tenet:port name=\"eth1\" mac=\"52:54:00:00:00:01\"/></tenet:vm>",
            "another port of the domain has its name or MAC",
        ),
    ];
    for (from, to, said) in cases {
        assert!(OURS.contains(from), "{from}");
        let error = Domain::parse(&OURS.replacen(from, to, 1)).unwrap_err().to_string();
        assert!(error.contains(said) && error.contains("sql-1"), "{to}: {error}");
    }
}

#[test]
fn refuses_what_is_no_domain_and_never_panics() {
    for bad in ["", "<", "<domain", "<network/>", "<domain/>", "<domain><name/></domain>", "&#0;"] {
        assert!(Domain::parse(bad).is_err(), "{bad}");
        assert!(set_mark(bad, &mark()).is_err(), "{bad}");
        assert!(set_interface(bad, &nic()).is_err(), "{bad}");
    }
    // Entities are not expanded.
    let bomb = "<!DOCTYPE d [<!ENTITY a \"aaaa\">]><domain><name>&a;</name></domain>";
    assert!(Domain::parse(bomb).unwrap_err().to_string().contains("well-formed"));
    // Cut anywhere, it is refused or read; nothing else.
    for end in (0..OURS.len()).filter(|n| OURS.is_char_boundary(*n)) {
        _ = Domain::parse(&OURS[..end]);
        _ = set_mark(&OURS[..end], &mark());
    }
}

#[test]
fn a_mark_is_put_in_replaced_and_read_back() {
    for xml in [
        BRIDGED.to_owned(),
        OURS.to_owned(),
        "<domain><name>x</name></domain>".to_owned(),
        "<domain><name>x</name><metadata/></domain>".to_owned(),
        "<domain><name>x</name><metadata></metadata></domain>".to_owned(),
        "<domain><name>x</name><metadata><o:o xmlns:o='urn:o'/></metadata></domain>".to_owned(),
    ] {
        let mut other = mark();
        other.ports[0].addresses.clear();
        let once = set_mark(&xml, &other).unwrap();
        assert_eq!(Domain::parse(&once).unwrap().mark, Some(other), "{once}");
        let twice = set_mark(&once, &mark()).unwrap();
        assert_eq!(Domain::parse(&twice).unwrap().mark, Some(mark()), "{twice}");
        assert_eq!(set_mark(&twice, &mark()).unwrap(), twice, "once more changes nothing");
        assert_eq!(xml.contains("urn:o"), twice.contains("urn:o"), "others' metadata stays");
    }
    // All else stays to the byte.
    let marked = set_mark(BRIDGED, &mark()).unwrap();
    let (before, after) = BRIDGED.split_at(BRIDGED.find("</metadata>").unwrap());
    assert!(marked.starts_with(before.trim_end()) && marked.ends_with(after), "{marked}");
}

#[test]
fn a_mark_with_two_elements_becomes_one() {
    let twice = OURS.replace("</tenet:vm>", "</tenet:vm><tenet:x xmlns:tenet=\"urn:tenet:libvirt:1\"/>");
    assert!(Domain::parse(&twice).is_err());
    assert_eq!(Domain::parse(&set_mark(&twice, &mark()).unwrap()).unwrap().mark, Some(mark()));
}

#[test]
fn a_nic_is_connected_to_a_tap_and_keeps_the_rest() {
    let xml = set_interface(BRIDGED, &nic()).unwrap();
    let domain = Domain::parse(&xml).unwrap();
    let changed = domain.interface(nic().mac).unwrap();
    assert_eq!(changed.source, Source::Ethernet);
    assert_eq!((changed.device.as_deref(), changed.managed), (Some("tn0123456789a"), false));
    assert_eq!((changed.model.as_deref(), changed.vlan), (Some("e1000e"), None));
    assert!(xml.contains("<mtu size='1458'/>") && xml.contains("<boot order='2'/>"), "{xml}");
    assert!(xml.contains("<alias name='ua-first'/>"), "{xml}");
    let (before, after) = (Domain::parse(BRIDGED).unwrap(), domain);
    assert_eq!(before.interfaces[1..], after.interfaces[1..]);
    assert_eq!(set_interface(&xml, &nic()).unwrap(), xml, "once more changes nothing");
}

#[test]
fn a_new_nic_is_added() {
    let new = Nic { mac: mac("52:54:00:00:00:77"), mtu: None, ..nic() };
    for xml in [
        BRIDGED,
        "<domain><name>x</name><devices/></domain>",
        "<domain><name>x</name><devices></devices></domain>",
        "<domain><name>x</name><devices><emulator>/q</emulator></devices></domain>",
    ] {
        let with = set_interface(xml, &new).unwrap();
        let added = Domain::parse(&with).unwrap().interface(new.mac).unwrap().clone();
        assert_eq!((added.source, added.managed), (Source::Ethernet, false), "{with}");
        assert_eq!(added.model.as_deref(), Some("virtio"));
        let count = |xml: &str| Domain::parse(xml).unwrap().interfaces.len();
        assert_eq!(count(&with), count(xml) + 1);
    }
    let error = set_interface("<domain><name>x</name></domain>", &new).unwrap_err().to_string();
    assert_eq!(error, "domain x has no <devices>");
    let alone = interface(&nic());
    assert!(alone.contains("type='ethernet'") && alone.contains("managed='no'"), "{alone}");
}

#[test]
fn a_tap_gets_another_name_and_nothing_else_changes() {
    let xml = set_target(OURS, mac("52:54:00:00:00:01"), "a&b").unwrap();
    assert_eq!(xml, OURS.replace("tn8492220cbcc", "a&amp;b"));
    assert!(set_target(OURS, mac("52:54:00:00:00:02"), "x").is_err());
}
