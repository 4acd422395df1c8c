//! `domicile cert` as a user runs it: what it prints, which files there are, and who may
//! read them.

use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::Path;
use std::process::{Command, Output};

use domicile_proto::address::RegionName;
use domicile_proto::identity::mint::Authority;
use domicile_proto::identity::{ClusterName, Workload};
use serde_json::{Value, json};
use tempfile::TempDir;
use tokio_rustls::rustls::pki_types::UnixTime;

const DAY: u64 = 86_400;

struct Ran {
    code: i32,
    out: String,
    err: String,
}

/// Runs `domicile cert` in a directory; the arguments are split at spaces.
fn run(place: &TempDir, arguments: &str) -> Ran {
    run_under(place, "022", arguments)
}

/// The same with a mask of the modes that its files get.
fn run_under(place: &TempDir, umask: &str, arguments: &str) -> Ran {
    let program = env!("CARGO_BIN_EXE_domicile");
    let Output {
        status,
        stdout,
        stderr,
    } = Command::new("sh")
        .current_dir(place.path())
        .args([
            "-c",
            &format!("umask {umask}; exec {program} cert {arguments}"),
        ])
        .output()
        .expect("it ran");
    Ran {
        code: status.code().expect("an exit code"),
        out: String::from_utf8(stdout).expect("text"),
        err: String::from_utf8(stderr).expect("text"),
    }
}

fn done(place: &TempDir, arguments: &str) -> Ran {
    let ran = run(place, arguments);
    assert_eq!(ran.code, 0, "{arguments}: {}", ran.err);
    ran
}

fn json_of(place: &TempDir, arguments: &str) -> Value {
    let ran = done(place, &format!("{arguments} -o json"));
    serde_json::from_str(&ran.out).expect("JSON")
}

/// Runs what must fail, and answers what it said.
fn refused(place: &TempDir, code: i32, arguments: &str) -> String {
    let ran = run(place, arguments);
    assert_eq!(ran.code, code, "{arguments}: {}{}", ran.out, ran.err);
    ran.err
}

/// An empty directory to work in.
fn place() -> TempDir {
    TempDir::new().expect("a directory")
}

/// One with the authorities of two regions, of which the first takes the other.
fn with_authorities() -> TempDir {
    let place = place();
    for region in ["eu", "us"] {
        let names = format!("--region {region} --cluster store.example");
        done(&place, &format!("ca {names} --out {region}"));
    }
    done(&place, "trust --ca eu us/bundles/us.pem");
    place
}

fn mode(place: &TempDir, path: &str) -> u32 {
    let there = place.path().join(path).symlink_metadata().expect(path);
    there.permissions().mode() & 0o777
}

/// What is printed, without what differs each time.
fn golden(text: &str) -> String {
    let word = |word: &str| {
        let hex = |c: char| c.is_ascii_hexdigit() || c == ':';
        let is_hex = word.chars().all(hex);
        match word.len() {
            95 if is_hex => "SHA-256".to_owned(),
            _ if word.parse::<u64>().is_ok() => "N".to_owned(),
            20 if word.ends_with('Z') => "TIME".to_owned(),
            30..=42 if is_hex => "SERIAL".to_owned(),
            _ => word.to_owned(),
        }
    };
    let line = |line: &str| {
        let words: Vec<_> = line.split_whitespace().map(word).collect();
        words.join(" ") + "\n"
    };
    text.lines().map(line).collect()
}

#[test]
fn what_is_printed_for_people() {
    let place = place();
    let ran = done(&place, "ca --region eu --cluster store.example --out eu");
    assert_eq!(
        golden(&ran.out),
        "AUTHORITY VALID UNTIL SHA-256\nspiffe://eu.store.example TIME SHA-256\n"
    );
    assert!(
        ran.err.contains("next: give eu/bundles/eu.pem"),
        "{}",
        ran.err
    );
    let ran = done(&place, "node --ca eu --node 1 --out eu-1");
    assert_eq!(
        golden(&ran.out),
        "ID VALID UNTIL BUNDLES\nspiffe://eu.store.example/node/1 TIME eu\n"
    );
    assert!(
        ran.err.contains("only the roots of region eu"),
        "{}",
        ran.err
    );
    let ran = done(&place, "rotate --ca eu --begin");
    assert_eq!(golden(&ran.out), "STEP BUNDLE\nbegin eu/bundles/eu.pem\n");
    assert!(ran.err.contains("rotate --ca eu --switch"), "{}", ran.err);
    let ran = done(&place, "status eu eu-1");
    let root = "spiffe://eu.store.example SERIAL TIME TIME";
    let expected = format!(
        "FILE ID SERIAL FROM UNTIL LEFT KEY\n\
         eu/ca.crt {root} N d fits\n\
         eu/next/ca.crt {root} N d fits\n\
         eu/bundles/eu.pem {root} N d -\n\
         eu/bundles/eu.pem {root} N d -\n\
         eu-1/tls.crt spiffe://eu.store.example/node/1 SERIAL TIME TIME N d fits\n\
         eu-1/bundles/eu.pem {root} N d -\n"
    );
    assert_eq!(golden(&ran.out), expected);
}

#[test]
fn json_keeps_its_schema() {
    let place = place();
    let keys = |value: &Value| -> Vec<String> {
        value
            .as_object()
            .expect("an object")
            .keys()
            .cloned()
            .collect()
    };
    let made = json_of(&place, "ca --region us --cluster store.example --out us");
    let expected = [
        "bundle",
        "cluster",
        "directory",
        "dry_run",
        "fingerprint_sha256",
        "id",
        "not_after",
        "region",
    ];
    assert_eq!(keys(&made), expected);
    done(&place, "ca --region eu --cluster store.example --out eu");
    let trusted = json_of(&place, "trust --ca eu us/bundles/us.pem");
    let (region, root) = (&trusted["trusted"][0], &trusted["trusted"][0]["roots"][0]);
    assert_eq!(
        (&region["region"], &region["unchanged"]),
        (&json!("us"), &json!(false))
    );
    assert_eq!(root["fingerprint_sha256"], made["fingerprint_sha256"]);
    let again = json_of(&place, "trust --ca eu us/bundles/us.pem");
    assert_eq!(again["trusted"][0]["unchanged"], true);
    let issued = json_of(
        &place,
        "client --ca eu --name orders --out orders --valid 12h",
    );
    assert_eq!(issued["id"], "spiffe://eu.store.example/svc/orders");
    assert_eq!(issued["bundles"], json!(["eu", "us"]));
    assert_eq!(issued["renewed"], false);
    let status = json_of(&place, "status orders");
    assert_eq!(status["ok"], true);
    let leaf = &status["certificates"][0];
    let expected = [
        "bundles",
        "directory",
        "file",
        "fingerprint_sha256",
        "id",
        "key_fits",
        "kind",
        "not_after",
        "not_before",
        "problems",
        "remaining_s",
        "serial",
        "warnings",
    ];
    assert_eq!(keys(leaf), expected);
    assert_eq!(leaf["serial"], issued["serial"]);
    assert_eq!(
        (&leaf["kind"], &leaf["key_fits"]),
        (&json!("leaf"), &json!(true))
    );
    assert_eq!(leaf["bundles"], json!(["eu", "us"]));
}

#[test]
fn keys_are_their_owners_alone_whatever_the_mask() {
    for (umask, public) in [("000", 0o644), ("077", 0o600), ("022", 0o644)] {
        let place = place();
        for arguments in [
            "ca --region eu --cluster store.example --out eu",
            "node --ca eu --node 1 --out eu-1",
            "rotate --ca eu --begin",
            "node --ca eu --node 1 --out eu-1",
        ] {
            let ran = run_under(&place, umask, arguments);
            assert_eq!(ran.code, 0, "{arguments}: {}", ran.err);
        }
        for path in ["eu/ca.key", "eu/next/ca.key", "eu-1/tls.key"] {
            assert_eq!(mode(&place, path), 0o600, "{umask}: {path}");
        }
        for path in ["eu", "eu/next", "eu-1"] {
            assert_eq!(mode(&place, path), 0o700, "{umask}: {path}");
        }
        for path in [
            "eu/ca.crt",
            "eu/bundles/eu.pem",
            "eu-1/tls.crt",
            "eu-1/bundles/eu.pem",
        ] {
            assert_eq!(mode(&place, path), public, "{umask}: {path}");
        }
    }
}

#[test]
fn nothing_is_overwritten_or_replaced_that_others_could_reach() {
    let place = with_authorities();
    let path = |name: &str| place.path().join(name);
    let said = refused(&place, 1, "ca --region eu --cluster store.example --out eu");
    assert!(said.contains("eu/ca.crt is there already"), "{said}");
    done(&place, "node --ca eu --node 1 --out eu-1");
    let said = refused(&place, 1, "node --ca eu --node 2 --out eu-1");
    assert!(said.contains("node/1, not of"), "{said}");

    let set = |name: &str, mode| {
        let permissions = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(path(name), permissions).expect("changed");
    };
    let node = "node --ca eu --node 1 --out eu-1";
    for (name, wrong, right) in [
        ("eu-1/tls.key", 0o644, 0o600),
        ("eu/ca.key", 0o640, 0o600),
        ("eu-1", 0o777, 0o700),
    ] {
        let before = std::fs::read(path("eu-1/tls.crt")).expect("there");
        set(name, wrong);
        let said = refused(&place, 1, node);
        assert!(said.contains(name) && said.contains("others"), "{said}");
        set(name, right);
        assert_eq!(std::fs::read(path("eu-1/tls.crt")).expect("there"), before);
    }
    done(&place, node);

    for name in ["eu-1/tls.key", "eu-1/tls.crt", "eu/ca.key"] {
        let elsewhere = path("elsewhere");
        std::fs::rename(path(name), &elsewhere).expect("moved");
        symlink(&elsewhere, path(name)).expect("linked");
        let before = std::fs::read(&elsewhere).expect("there");
        let said = refused(&place, 1, node);
        assert!(said.contains("link"), "{said}");
        assert_eq!(std::fs::read(&elsewhere).expect("there"), before);
        std::fs::rename(&elsewhere, path(name)).expect("moved back");
    }
    done(&place, node);
}

#[test]
fn a_certificate_is_renewed_in_its_place() {
    let place = with_authorities();
    let first = json_of(&place, "node --ca eu --node 1 --out eu-1");
    let key = std::fs::read(place.path().join("eu-1/tls.key")).expect("there");
    // What an attempt left that was cut off.
    std::fs::write(place.path().join("eu-1/.tls.key.new"), "half").expect("written");
    let second = json_of(&place, "node --ca eu --node 1 --out eu-1");
    assert_eq!(
        (&first["renewed"], &second["renewed"]),
        (&json!(false), &json!(true))
    );
    assert_ne!(first["serial"], second["serial"]);
    assert_ne!(
        std::fs::read(place.path().join("eu-1/tls.key")).expect("there"),
        key
    );
    let status = json_of(&place, "status eu-1");
    assert_eq!(status["certificates"][0]["serial"], second["serial"]);
    assert!(!place.path().join("eu-1/.tls.key.new").exists());
}

#[test]
fn a_dry_run_writes_nothing() {
    let place = place();
    let create = "ca --region eu --cluster store.example --out eu";
    let said = json_of(&place, &format!("{create} --dry-run"));
    assert_eq!(said["dry_run"], true);
    assert!(!place.path().join("eu").exists());
    done(&place, create);
    let ran = done(&place, "node --ca eu --node 1 --out eu-1 --dry-run");
    assert!(ran.err.contains("nothing is written"), "{}", ran.err);
    assert!(!place.path().join("eu-1").exists());
    done(&place, "rotate --ca eu --begin --dry-run");
    assert!(!place.path().join("eu/next").exists());
}

#[test]
fn certificates_for_development_end_within_a_day() {
    let place = place();
    done(&place, "ca --region eu --cluster dev.local --out eu");
    let ran = done(&place, "node --ca eu --node 1 --out eu-1 -o json");
    assert!(ran.err.contains("valid for 24h"), "{}", ran.err);
    let said = refused(&place, 2, "node --ca eu --node 1 --out eu-1 --valid 25h");
    assert!(said.contains("24h at most"), "{said}");
    done(&place, "node --ca eu --node 1 --out eu-1 --valid 2h");
    let leaf = &json_of(&place, "status eu-1")["certificates"][0];
    assert!(leaf["remaining_s"].as_u64().expect("a number") <= 2 * 3_600);
}

#[test]
fn only_roots_of_one_other_region_of_the_cluster_are_taken() {
    let place = with_authorities();
    let (at, write) = (place.path(), |name: &str, text: &[u8]| {
        std::fs::write(place.path().join(name), text).expect("written");
    });
    let said = refused(&place, 1, "trust --ca eu eu/bundles/eu.pem");
    assert!(said.contains("own region"), "{said}");
    done(&place, "node --ca us --node 1 --out us-1");
    let said = refused(&place, 1, "trust --ca eu us-1/tls.crt");
    assert!(said.contains("no root"), "{said}");
    done(&place, "ca --region us --cluster other.example --out other");
    let said = refused(&place, 1, "trust --ca eu other/bundles/us.pem");
    assert!(said.contains("other.example"), "{said}");
    done(&place, "ca --region ap --cluster store.example --out ap");
    let read = |name: &str| std::fs::read(at.join(name)).expect("there");
    write("both.pem", &[read("us/ca.crt"), read("ap/ca.crt")].concat());
    let said = refused(&place, 1, "trust --ca eu both.pem");
    assert!(said.contains("more than one region"), "{said}");
    write("empty.pem", b"");
    let said = refused(&place, 1, "trust --ca eu empty.pem");
    assert!(said.contains("no certificate"), "{said}");
    // The key of the own region's authority under another region's name.
    std::fs::copy(at.join("eu/ca.crt"), at.join("us/bundles/ap.pem")).expect("copied");
    let said = refused(&place, 1, "trust --ca us eu/bundles/eu.pem");
    assert!(said.contains("authority of its own"), "{said}");
    // Another root than the one that was known.
    done(
        &place,
        "ca --region us --cluster store.example --out us-again",
    );
    let ran = done(&place, "trust --ca eu us-again/bundles/us.pem");
    assert!(ran.err.contains("compare the fingerprints"), "{}", ran.err);
    assert!(
        ran.err.contains("warning: none of the roots"),
        "{}",
        ran.err
    );
}

/// Writes the certificate of a node that was made a while ago.
fn write_old(directory: &Path, days: u64, valid_days: u64) {
    let (region, cluster) = (RegionName::new("eu"), ClusterName::new("store.example"));
    let (region, cluster) = (region.expect("a name"), cluster.expect("a name"));
    let then = UnixTime::now().as_secs() - days * DAY;
    let authority = Authority::new(&region, &cluster, then, 100 * DAY).expect("made");
    let minted = authority.issue(&Workload::Node(1), then, valid_days * DAY);
    let minted = minted.expect("made");
    std::fs::create_dir_all(directory.join("bundles")).expect("made");
    std::fs::write(directory.join("tls.crt"), &minted.chain).expect("written");
    std::fs::write(directory.join("tls.key"), &*minted.key).expect("written");
    let bundle = directory.join("bundles/eu.pem");
    std::fs::write(bundle, authority.certificate()).expect("written");
}

#[test]
fn the_status_says_what_is_broken_and_what_will_be() {
    let place = with_authorities();
    let broken = |arguments: &str, why: &str| {
        let ran = run(&place, &format!("status {arguments}"));
        assert_eq!(ran.code, 1, "{}{}", ran.out, ran.err);
        assert!(
            ran.out.contains(&format!("problem: {arguments}/")),
            "{}",
            ran.out
        );
        assert!(ran.out.contains(why), "{}", ran.out);
    };
    write_old(&place.path().join("expired"), 10, 5);
    broken("expired", "it has expired");
    write_old(&place.path().join("old"), 4, 5);
    let ran = done(&place, "status old");
    assert!(
        ran.out.contains("warning: old/tls.crt: less than a third"),
        "{}",
        ran.out
    );
    assert!(
        ran.out.contains("tls.key can be read by others"),
        "{}",
        ran.out
    );

    let copy = |from: &str, to: &str| {
        std::fs::copy(place.path().join(from), place.path().join(to)).expect("copied");
    };
    for name in ["one", "two", "three"] {
        done(
            &place,
            &format!("client --ca eu --name {name} --out {name}"),
        );
    }
    copy("two/tls.key", "one/tls.key");
    broken("one", "tls.key is the key of another certificate");
    copy("us/bundles/us.pem", "two/bundles/eu.pem");
    std::fs::remove_file(place.path().join("two/bundles/us.pem")).expect("removed");
    broken("two", "it is a root of region us");
    std::fs::remove_file(place.path().join("three/bundles/eu.pem")).expect("removed");
    broken("three", "no roots of its region are known here");
    std::fs::remove_file(place.path().join("three/tls.key")).expect("removed");
    broken("three", "there is no tls.key");
    let said = refused(&place, 1, "status us/bundles");
    assert!(said.contains("no certificate in"), "{said}");
    refused(&place, 2, "status");
}

#[test]
fn a_rotation_goes_step_by_step() {
    let place = with_authorities();
    let said = refused(&place, 2, "rotate --ca eu --switch");
    assert!(said.contains("--begin first"), "{said}");
    refused(&place, 2, "rotate --ca eu");
    refused(&place, 2, "rotate --ca eu --begin --switch");
    for (step, next) in [
        ("begin", "distribute"),
        ("switch", "renew the certificate of every"),
        ("finish", "so that nobody takes the old root"),
    ] {
        let json = json_of(&place, &format!("rotate --ca eu --{step}"));
        assert_eq!(
            (&json["step"], &json["unchanged"]),
            (&json!(step), &json!(false))
        );
        assert!(
            json["next"].as_str().expect("text").contains(next),
            "{json}"
        );
        // The other region takes the bundle of each step.
        let ran = done(&place, "trust --ca us eu/bundles/eu.pem");
        assert!(!ran.err.contains("warning"), "{}", ran.err);
        done(&place, "status eu us");
    }
    assert!(!place.path().join("eu/previous").exists());
}
