//! What Azure does beside the plain path, asked of a world without sockets whose time is stepped.

use std::time::Duration;

use bytes::Bytes;
use oast_azure_sim::http::{Answer, Content, Method, Reply, Request};
use oast_azure_sim::time::Pace;
use oast_azure_sim::world::{Settings, World};
use serde_json::{Value, json};

const GROUP: &str = "/subscriptions/s/resourceGroups/g";
const COMPUTE: &str = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Compute";
const DISKS: &str = "api-version=2024-03-02";

struct Bench {
    world: World,
    token: String,
}

impl Bench {
    fn new(settings: Settings) -> Bench {
        let mut world = World::new(Settings {
            pace: Pace::Stepped,
            ..settings
        });
        world.throttle.off = true;
        let mut bench = Bench {
            world,
            token: String::new(),
        };
        bench.sign_in();
        let made = bench.put(
            &format!("{GROUP}?api-version=2021-04-01"),
            &json!({"location": "westeurope"}),
        );
        assert_eq!(made.status, 201);
        bench
    }

    fn sign_in(&mut self) {
        let path = "/metadata/identity/oauth2/token?api-version=2018-02-01&resource=https%3A%2F%2Fmanagement.azure.com%2F";
        let mut request = Request::at(Method::Get, path);
        request
            .headers
            .push(("metadata".to_owned(), "true".to_owned()));
        let given = reply(self.world.handle(Duration::ZERO, &request));
        assert!(
            given.body()["expires_in"].is_string(),
            "numbers are texts there"
        );
        self.token = given.body()["access_token"]
            .as_str()
            .expect("a token")
            .to_owned();
    }

    fn ask(&mut self, method: Method, uri: &str, body: Option<&Value>) -> Answer {
        let mut request = Request::at(method, uri);
        let bearer = format!("Bearer {}", self.token);
        request.headers.push(("authorization".to_owned(), bearer));
        if let Some(body) = body {
            request.body = Bytes::from(body.to_string());
        }
        self.world.handle(Duration::ZERO, &request)
    }

    fn get(&mut self, uri: &str) -> Reply {
        reply(self.ask(Method::Get, uri, None))
    }

    fn put(&mut self, uri: &str, body: &Value) -> Reply {
        reply(self.ask(Method::Put, uri, Some(body)))
    }

    fn post(&mut self, uri: &str, body: &Value) -> Reply {
        reply(self.ask(Method::Post, uri, Some(body)))
    }

    fn tell(&mut self, what: &str, body: &Value) {
        let told = self.post(&format!("/__sim/{what}"), body);
        assert_eq!(told.status, 200, "{told:?}");
    }

    fn step(&mut self, ms: u64) {
        self.tell("clock", &json!({"stepMs": ms}));
    }

    fn disk(&mut self, name: &str) -> Reply {
        let body = json!({"location": "westeurope", "properties": {
            "creationData": {"createOption": "Empty"}, "diskSizeGB": 4}});
        self.put(&format!("{COMPUTE}/disks/{name}?{DISKS}"), &body)
    }
}

impl Drop for Bench {
    fn drop(&mut self) {
        if !std::thread::panicking() {
            assert_eq!(self.world.violations(), Vec::<String>::new());
        }
    }
}

fn reply(answer: Answer) -> Reply {
    match answer {
        Answer::Reply(reply) => reply,
        Answer::Cut => panic!("the connection was cut"),
    }
}

fn local(reply: &Reply, header: &str) -> String {
    let url = reply.header(header).expect("a link");
    url.strip_prefix("http://localhost")
        .expect("our own")
        .to_owned()
}

fn code(reply: &Reply) -> (u16, &str) {
    let inner = reply.body().get("error").unwrap_or_else(|| reply.body());
    (reply.status, inner["code"].as_str().unwrap_or_default())
}

#[test]
fn an_operation_is_followed_by_both_links_and_forgotten_after_a_day() {
    let mut bench = Bench::new(Settings {
        url_padding: 4096,
        ..Settings::default()
    });
    let begun = bench.disk("d");
    assert_eq!((begun.status, begun.body().get("id")), (202, None));
    assert_eq!(begun.header("retry-after"), Some("10"));
    let (operation, monitor) = (
        local(&begun, "azure-asyncoperation"),
        local(&begun, "location"),
    );
    assert!(operation.contains("/DiskOperations/") && monitor.contains("monitor=true"));
    assert!(monitor.len() > 4096);
    assert_eq!(bench.get(&operation).body()["status"], "InProgress");
    assert_eq!(bench.get(&monitor).status, 202);
    bench.step(1000);
    assert_eq!(bench.get(&operation).body()["status"], "Succeeded");
    assert_eq!(bench.get(&monitor).body()["name"], "d");
    bench.step(23 * 3600 * 1000);
    bench.sign_in();
    assert_eq!(bench.get(&operation).status, 200);
    bench.step(3600 * 1000);
    bench.sign_in();
    assert_eq!(code(&bench.get(&operation)), (404, "NotFound"));
}

#[test]
fn what_was_made_is_seen_late_and_what_was_deleted_is_seen_still() {
    let mut bench = Bench::new(Settings {
        appear_ms: 5000,
        list_ms: 5000,
        vanish_ms: 5000,
        stale_ms: 5000,
        seed: 3,
        ..Settings::default()
    });
    bench.disk("d");
    let (one, all) = (
        format!("{COMPUTE}/disks/d?{DISKS}"),
        format!("{COMPUTE}/disks?{DISKS}"),
    );
    assert_eq!(code(&bench.get(&one)), (404, "ResourceNotFound"));
    bench.step(5000);
    assert_eq!(bench.get(&one).status, 200);
    bench.step(5000);
    let listed = |bench: &mut Bench| bench.get(&all).body()["value"].as_array().map(Vec::len);
    assert_eq!(listed(&mut bench), Some(1));
    let tags = json!({"tags": {"new": "1"}});
    bench.ask(Method::Patch, &one, Some(&tags));
    assert_eq!(bench.get(&one).body().get("tags"), None);
    bench.step(6000);
    assert_eq!(bench.get(&one).body()["tags"]["new"], "1");
    bench.ask(Method::Delete, &one, None);
    bench.step(400);
    assert_eq!((bench.get(&one).status, listed(&mut bench)), (200, Some(1)));
    bench.step(5000);
    assert_eq!((bench.get(&one).status, listed(&mut bench)), (404, Some(0)));
}

#[test]
fn two_writes_at_once_conflict_and_a_network_interface_is_not_ready_at_once() {
    let mut bench = Bench::new(Settings::default());
    bench.disk("d");
    assert_eq!(code(&bench.disk("d")), (409, "Conflict"));
    let network = "/subscriptions/s/resourceGroups/g/providers/Microsoft.Network";
    let version = "api-version=2023-09-01";
    let subnets = json!([{"name": "a", "properties": {"addressPrefix": "10.0.0.0/24"}}]);
    let body = json!({"location": "westeurope", "properties": {"subnets": subnets}});
    bench.put(&format!("{network}/virtualNetworks/n?{version}"), &body);
    let subnet = format!("{network}/virtualNetworks/n/subnets/a");
    let nic = format!("{network}/networkInterfaces/nic");
    let body = json!({"location": "westeurope", "properties": {"ipConfigurations": [
        {"name": "ip", "properties": {"subnet": {"id": subnet}}}]}});
    assert_eq!(bench.put(&format!("{nic}?{version}"), &body).status, 201);
    let again = bench.put(&format!("{nic}?{version}"), &body);
    assert_eq!(code(&again), (409, "AnotherOperationInProgress"));
    let machine = json!({"location": "westeurope", "properties": {
        "hardwareProfile": {"vmSize": "Standard_B1s"},
        "storageProfile": {
            "imageReference": {"publisher": "p", "offer": "o", "sku": "s", "version": "latest"},
            "osDisk": {"createOption": "FromImage"}},
        "osProfile": {"computerName": "c", "adminUsername": "a", "adminPassword": "p"},
        "networkProfile": {"networkInterfaces": [{"id": nic}]}}});
    let vm = format!("{COMPUTE}/virtualMachines/vm?api-version=2024-07-01");
    let early = bench.put(&vm, &machine);
    assert_eq!(code(&early), (429, "RetryableError"));
    let inner = &early.body()["error"]["details"][0]["code"];
    assert_eq!(inner, "ReferencedResourceNotProvisioned");
    bench.step(10_000);
    assert_eq!(bench.put(&vm, &machine).status, 201);
    let in_use = reply(bench.ask(Method::Delete, &format!("{nic}?{version}"), None));
    assert_eq!(code(&in_use), (400, "NicInUse"));
    // The group takes all of it.
    let group = format!("{GROUP}?api-version=2021-04-01");
    assert_eq!(reply(bench.ask(Method::Delete, &group, None)).status, 202);
    assert_eq!(
        code(&bench.disk("late")),
        (409, "ResourceGroupBeingDeleted")
    );
    bench.step(3_600_000);
    bench.sign_in();
    let left = bench.get("/__sim/resources");
    assert_eq!(left.body()["value"], json!([]));
}

#[test]
fn limits_refuse_with_their_headers_and_admit_again_after_retry_after() {
    let mut bench = Bench::new(Settings::default());
    bench.world.throttle.off = false;
    let poll = local(&bench.disk("d"), "azure-asyncoperation");
    let mut last = bench.get(&poll);
    assert_eq!(
        last.header("x-ms-ratelimit-remaining-resource"),
        Some("Microsoft.Compute/GetOperationResource;44")
    );
    assert!(
        last.header("x-ms-ratelimit-remaining-subscription-reads")
            .is_some()
    );
    let mut asked = 1;
    while last.status == 200 {
        last = bench.get(&poll);
        asked += 1;
    }
    assert_eq!((asked, code(&last)), (46, (429, "OperationNotAllowed")));
    let inner = last.body().get("error").unwrap_or_else(|| last.body());
    assert_eq!(inner["details"][0]["code"], "TooManyRequests");
    let seconds: u64 = last
        .header("retry-after")
        .and_then(|s| s.parse().ok())
        .expect("a wait");
    bench.step(seconds * 1000);
    assert_eq!(bench.get(&poll).status, 200);
}

#[test]
fn tokens_expire_and_rights_are_denied() {
    let mut bench = Bench::new(Settings::default());
    let all = format!("{COMPUTE}/disks?{DISKS}");
    bench.step(3_600_000);
    let late = bench.get(&all);
    assert_eq!(code(&late), (401, "ExpiredAuthenticationToken"));
    assert!(
        late.header("www-authenticate")
            .is_some_and(|h| h.contains("invalid_token"))
    );
    bench.token = "nonsense".to_owned();
    assert_eq!(code(&bench.get(&all)), (401, "InvalidAuthenticationToken"));
    bench.sign_in();
    assert_eq!(bench.get(&all).status, 200);
    bench.tell(
        "denials",
        &json!({"action": "Microsoft.Compute/disks/write"}),
    );
    let denied = bench.disk("d");
    assert_eq!(code(&denied), (403, "AuthorizationFailed"));
    assert_eq!(bench.get(&all).status, 200);
    let bare = Request::at(Method::Get, "/metadata/identity/oauth2/token?resource=x");
    assert_eq!(reply(bench.world.handle(Duration::ZERO, &bare)).status, 400);
}

#[test]
fn an_answer_can_be_lost_after_the_deed_and_before_it() {
    let mut bench = Bench::new(Settings::default());
    let disk = |name: &str| format!("{COMPUTE}/disks/{name}?{DISKS}");
    let body = json!({"location": "westeurope", "properties": {
        "creationData": {"createOption": "Empty"}, "diskSizeGB": 4}});
    for (how, there) in [("cutAfter", 200), ("cut", 404)] {
        bench.tell(
            "faults",
            &json!({"method": "PUT", "path": how, "connection": how}),
        );
        let lost = bench.ask(Method::Put, &disk(how), Some(&body));
        assert!(matches!(lost, Answer::Cut), "{how}");
        bench.step(1000);
        assert_eq!(bench.get(&disk(how)).status, there, "{how}");
    }
    bench.tell("faults", &json!({"answer": {"status": 500}, "times": 1}));
    assert_eq!(code(&bench.get(&disk("x"))), (500, "InternalServerError"));
}

#[test]
fn what_is_not_simulated_is_no_type_and_versions_are_checked() {
    let mut bench = Bench::new(Settings::default());
    let cases = [
        (
            format!("{COMPUTE}/hostGroups/h?api-version=2024-07-01"),
            404,
            "InvalidResourceType",
        ),
        (
            format!("{GROUP}/providers/Microsoft.Nothing/x/y?api-version=1"),
            404,
            "InvalidResourceNamespace",
        ),
        (
            format!("{COMPUTE}/disks/d"),
            400,
            "MissingApiVersionParameter",
        ),
        (
            format!("{COMPUTE}/disks/d?api-version=2026-04-01"),
            400,
            "NoRegisteredProviderFound",
        ),
    ];
    for (uri, status, said) in cases {
        assert_eq!(code(&bench.get(&uri)), (status, said), "{uri}");
    }
    bench.tell("settings", &json!({"lenientVersions": true}));
    let any = bench.get(&format!("{COMPUTE}/disks?api-version=2026-04-01"));
    assert_eq!(any.status, 200);
}

#[test]
fn an_uploaded_disk_is_used_only_when_its_upload_is_over_and_it_is_a_vhd() {
    let mut bench = Bench::new(Settings::default());
    let size: u64 = (20 << 20) + 512;
    let disk = format!("{COMPUTE}/disks/up");
    let image = |name: &str| format!("{COMPUTE}/images/{name}?api-version=2024-07-01");
    let of_disk = json!({"location": "westeurope", "properties": {"storageProfile": {"osDisk": {
        "osType": "Linux", "osState": "Generalized", "managedDisk": {"id": disk}}}}});
    let body = json!({"location": "westeurope", "properties": {
        "creationData": {"createOption": "Upload", "uploadSizeBytes": size}}});
    bench.put(&format!("{disk}?{DISKS}"), &body);
    bench.step(1000);
    let state = |bench: &mut Bench| {
        bench.get(&format!("{disk}?{DISKS}")).body()["properties"]["diskState"].clone()
    };
    assert_eq!(state(&mut bench), "ReadyToUpload");
    assert_eq!(
        code(&bench.put(&image("i"), &of_disk)),
        (409, "OperationNotAllowed")
    );
    let access = json!({"access": "Write", "durationInSeconds": 3600});
    let begun = bench.post(&format!("{disk}/beginGetAccess?{DISKS}"), &access);
    bench.step(1000);
    assert_eq!(state(&mut bench), "ActiveUpload");
    let given = bench.get(&local(&begun, "location"));
    let link = given.body()["accessSAS"]
        .as_str()
        .expect("a link")
        .to_owned();
    let link = link
        .strip_prefix("http://localhost")
        .expect("our own")
        .to_owned();
    let write = |bench: &mut Bench, from: u64, bytes: Vec<u8>| {
        let mut request = Request::at(Method::Put, &format!("{link}&comp=page"));
        let range = format!("bytes={from}-{}", from + bytes.len() as u64 - 1);
        request.headers = vec![
            ("x-ms-page-write".to_owned(), "update".to_owned()),
            ("x-ms-range".to_owned(), range),
        ];
        request.body = Bytes::from(bytes);
        reply(bench.world.handle(Duration::ZERO, &request)).status
    };
    assert_eq!(write(&mut bench, 0, vec![7; 1024]), 201);
    let end = |bench: &mut Bench| {
        bench.post(&format!("{disk}/endGetAccess?{DISKS}"), &Value::Null);
        bench.step(1000);
    };
    end(&mut bench);
    assert_eq!(state(&mut bench), "Unattached");
    let broken = bench.put(&image("i"), &of_disk);
    assert!(
        broken
            .body()
            .to_string()
            .contains("cookie value 'conectix'"),
        "{broken:?}"
    );

    // A footer as the format has it: a fixed disk of a whole number of mebibytes.
    let mut footer = vec![0u8; 512];
    footer[..8].copy_from_slice(b"conectix");
    footer[48..56].copy_from_slice(&(size - 512).to_be_bytes());
    footer[60..64].copy_from_slice(&2u32.to_be_bytes());
    let sum: u32 = footer.iter().map(|byte| u32::from(*byte)).sum();
    footer[64..68].copy_from_slice(&(!sum).to_be_bytes());
    let again = format!("{COMPUTE}/disks/up?{DISKS}");
    bench.ask(Method::Delete, &again, None);
    bench.step(1000);
    bench.put(&again, &body);
    bench.step(1000);
    let begun = bench.post(&format!("{disk}/beginGetAccess?{DISKS}"), &access);
    bench.step(1000);
    let given = bench.get(&local(&begun, "location"));
    let link = given.body()["accessSAS"].as_str().expect("a link");
    let link = link.strip_prefix("http://localhost").expect("our own");
    let mut request = Request::at(Method::Put, &format!("{link}&comp=page"));
    request.headers = vec![
        ("x-ms-page-write".to_owned(), "update".to_owned()),
        (
            "x-ms-range".to_owned(),
            format!("bytes={}-{}", size - 512, size - 1),
        ),
    ];
    request.body = Bytes::from(footer);
    assert_eq!(
        reply(bench.world.handle(Duration::ZERO, &request)).status,
        201
    );
    end(&mut bench);
    assert_eq!(bench.put(&image("i"), &of_disk).status, 201);
}

#[test]
fn the_same_seed_and_calls_give_the_same_answers() {
    let run = || {
        let mut bench = Bench::new(Settings {
            seed: 42,
            ..Settings::default()
        });
        let begun = bench.disk("d");
        let Content::Json(body) = begun.content.clone() else {
            panic!("a body");
        };
        (body, begun.headers)
    };
    assert_eq!(run(), run());
}
