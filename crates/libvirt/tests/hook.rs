//! What calls of the hook ask for.
#![expect(clippy::unwrap_used, reason = "tests stop at the first surprise")]

use tenet_libvirt::{Answer, Call, Domain, Plan, Prepare, Purpose, plan, redirect};
use tenet_model::tap_name;

const BRIDGED: &str = include_str!("bridged.xml");
const OURS: &str = include_str!("ours.xml");

fn call(operation: &'static str, stage: &'static str) -> Call<'static> {
    Call { domain: "sql-1", operation, stage }
}

fn prepare(xml: &str) -> Prepare {
    match plan(call("prepare", "begin"), xml.as_bytes()).unwrap() {
        Plan::Prepare(prepare) => prepare,
        other => panic!("{other:?}"),
    }
}

fn answer(asked: &Prepare, device: &str, queues: Option<u16>) -> Answer {
    let port = "contoso/sql/eth0".parse().unwrap();
    Answer { mac: asked.ports[0].mac, device: device.to_owned(), port, queues }
}

#[test]
fn other_domains_are_none_of_our_business_whatever_they_are() {
    for operation in ["prepare", "start", "started", "stopped", "release", "migrate", "restore", "reconnect"]
    {
        for stage in ["begin", "end"] {
            for xml in [BRIDGED.as_bytes(), b"", b"\xff\xfe", b"<domain", b"<domain><name>x</name>"] {
                assert_eq!(plan(call(operation, stage), xml), Ok(Plan::Nothing), "{operation} {stage}");
            }
        }
    }
    // The name of our namespace in a comment or a title makes no domain ours.
    let xml = BRIDGED.replace("<memory ", "<!-- urn:tenet:libvirt:1 --><memory ");
    assert_eq!(plan(call("prepare", "begin"), xml.as_bytes()), Ok(Plan::Nothing));
}

#[test]
fn calls_in_libvirts_order_ask_for_what_they_should() {
    let ask = |operation, stage| match plan(call(operation, stage), OURS.as_bytes()).unwrap() {
        Plan::Nothing => "nothing",
        Plan::Prepare(Prepare { purpose: Purpose::Start, .. }) => "start",
        Plan::Prepare(Prepare { purpose: Purpose::Incoming, .. }) => "incoming",
        Plan::Prepare(Prepare { purpose: Purpose::Running, .. }) => "running",
        Plan::Release { .. } => "release",
    };
    let start = [("prepare", "begin"), ("start", "begin"), ("started", "begin")];
    let stop = [("stopped", "end"), ("release", "end")];
    assert_eq!(start.map(|(o, s)| ask(o, s)), ["start", "nothing", "nothing"]);
    assert_eq!(stop.map(|(o, s)| ask(o, s)), ["nothing", "release"]);
    assert_eq!(ask("migrate", "begin"), "incoming");
    assert_eq!(ask("reconnect", "begin"), "running");
    assert_eq!(ask("restore", "begin"), "nothing");
}

#[test]
fn ports_are_asked_for_with_all_that_is_known() {
    let asked = prepare(OURS);
    assert_eq!(asked.vm.to_string(), "contoso/sql");
    let [port] = asked.ports.as_slice() else { panic!("{asked:?}") };
    assert_eq!(port.name.as_ref().unwrap().as_str(), "eth0");
    assert_eq!(port.mac.to_string(), "52:54:00:00:00:01");
    assert_eq!(port.subnet.as_ref().unwrap().to_string(), "contoso/blue/web");
    assert_eq!(port.addresses.len(), 2);
    assert_eq!(port.device, tap_name(&"contoso/sql/eth0".parse().unwrap()));
    assert!(!port.foreign);
    let foreign = prepare(&OURS.replace(&port.device, "tap0"));
    assert!(foreign.ports[0].foreign && foreign.ports[0].device == "tap0", "{foreign:?}");
}

#[test]
fn without_ports_in_the_mark_the_site_knows_them_by_mac() {
    let begin = OURS.find("<tenet:port").unwrap();
    let end = begin + OURS[begin..].find("/>").unwrap() + 2;
    let asked = prepare(&format!("{}{}", &OURS[..begin], &OURS[end..]));
    let [port] = asked.ports.as_slice() else { panic!("{asked:?}") };
    assert!(port.name.is_none() && port.subnet.is_none() && !port.foreign, "{port:?}");
    assert_eq!(port.mac.to_string(), "52:54:00:00:00:01");
}

#[test]
fn a_domain_that_cannot_work_is_refused_with_what_to_do() {
    let tap = tap_name(&"contoso/sql/eth0".parse().unwrap());
    let cases = [
        ("type='ethernet'", "type='bridge'", vec!["type='bridge'", "tenet libvirt attach sql-1"]),
        (" managed='no'", "", vec!["managed='no'", "tenet libvirt attach sql-1 --mac 52:54:00:00:00:01"]),
        ("mac address='52:54:00:00:00:01'", "mac address='52:54:00:00:00:09'", vec!["no interface with MAC"]),
        ("name=\"contoso/sql\"", "name=\"sql\"", vec!["TENANT/VM"]),
    ];
    for (from, to, said) in cases {
        let xml = OURS.replacen(from, to, 1);
        assert_ne!(xml, OURS, "{from}");
        let error = plan(call("prepare", "begin"), xml.as_bytes()).unwrap_err().to_string();
        assert!(!error.contains('\n'), "one line: {error}");
        for part in said {
            assert!(error.contains(part), "{error}");
        }
    }
    let error = plan(call("prepare", "begin"), OURS.replace(" managed='no'", "").as_bytes()).unwrap_err();
    assert!(error.to_string().contains(&tap), "{error}");
}

#[test]
fn a_domain_goes_on_with_the_tap_that_the_destination_has() {
    let asked = prepare(OURS);
    let mac = asked.ports[0].mac;
    let same = answer(&asked, &asked.ports[0].device, Some(1));
    assert_eq!(redirect(OURS, &asked.ports, std::slice::from_ref(&same)).unwrap(), None);
    assert_eq!(asked.check("sql-1", &[same], None), Ok(()));
    let other = answer(&asked, "tap9", None);
    let xml = redirect(OURS, &asked.ports, std::slice::from_ref(&other)).unwrap().unwrap();
    let moved = Domain::parse(&xml).unwrap();
    assert_eq!(moved.interface(mac).unwrap().device.as_deref(), Some("tap9"));
    let error = asked.check("sql-1", &[other], None).unwrap_err().to_string();
    assert!(error.contains("tap9") && error.contains(&asked.ports[0].device), "{error}");
}

#[test]
fn a_tap_of_other_queues_than_the_domain_opens_is_refused_with_what_to_do() {
    let several =
        OURS.replace("<model type='virtio'/>", "<model type='virtio'/><driver name='vhost' queues='4'/>");
    let (one, several) = (prepare(OURS), prepare(&several));
    assert_eq!((one.ports[0].queues, several.ports[0].queues), (1, 4));
    let tap = one.ports[0].device.clone();
    let said = |asked: &Prepare, queues| {
        let said = asked.check("sql-1", &[answer(asked, &tap, queues)], Some(&"h1".parse().unwrap()));
        said.map_or_else(|e| e.to_string(), |()| String::new())
    };
    let text = said(&several, Some(1));
    assert!(text.contains("queues='4'") && text.contains("contoso/sql/eth0"), "{text}");
    assert!(text.contains("`tenet vm attach contoso/sql --port eth0 --host h1 --queues 4`, or"), "{text}");
    // Where it comes to another host, that is not the host to change.
    let coming = several.check_queues("sql-1", &[answer(&several, &tap, Some(1))], None);
    let coming = coming.unwrap_err().to_string();
    assert!(coming.contains("--host HOST --queues 4` (`tenet vm show contoso/sql`"), "{coming}");
    let text = said(&one, Some(2));
    assert!(text.contains("<driver queues='2'/>") && text.contains("virsh edit sql-1"), "{text}");
    for (asked, queues) in [(&one, Some(1)), (&several, Some(4)), (&several, Some(2)), (&several, None)] {
        assert_eq!(said(asked, queues), "", "{queues:?}");
    }
    // Only virtio has queues: libvirt opens one of another model.
    let other = OURS.replace("<model type='virtio'/>", "<model type='e1000e'/><driver queues='4'/>");
    assert_eq!(prepare(&other).ports[0].queues, 1);
}
