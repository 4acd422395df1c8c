//! The program as a user runs it: output, exit codes, the schema of JSON.

mod support;

use std::io::Write;
use std::process::{Command, Output, Stdio};

use domicile_client::Reason;
use domicile_proto::v1;
use domicile_proto::v1::session_operation::Operation;
use serde_json::{Value, json};
use support::{Act, Fake, Running, failure};
use tonic::Code;

struct Ran {
    code: i32,
    out: String,
    err: String,
}

/// Runs the program; the arguments are split at spaces.
async fn run(node: Option<&Running>, arguments: &str) -> Ran {
    let list: Vec<_> = arguments.split_whitespace().collect();
    run_with(node, &list, b"").await
}

async fn run_with(node: Option<&Running>, arguments: &[&str], stdin: &[u8]) -> Ran {
    let mut command = Command::new(env!("CARGO_BIN_EXE_domicile"));
    command.args(arguments).env_remove("NO_COLOR");
    // Port 9 answers nobody.
    let endpoint = node.map_or("http://127.0.0.1:9".to_owned(), Running::endpoint);
    command.env("DOMICILE_ENDPOINTS", endpoint);
    command
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    let mut child = command.spawn().expect("the program");
    // It may end before it has read everything.
    child.stdin.take().expect("piped").write_all(stdin).ok();
    let Output {
        status,
        stdout,
        stderr,
    } = tokio::task::spawn_blocking(move || child.wait_with_output())
        .await
        .expect("no panic")
        .expect("it ran");
    Ran {
        code: status.code().expect("an exit code"),
        out: String::from_utf8(stdout).expect("text"),
        err: String::from_utf8(stderr).expect("text"),
    }
}

/// Runs the program, which must succeed and print one JSON document.
async fn json_of(node: &Running, arguments: &str) -> Value {
    let ran = run(Some(node), &format!("{arguments} -o json")).await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    serde_json::from_str(&ran.out).expect("JSON")
}

#[tokio::test]
async fn records_in_json_keep_their_schema() {
    let node = Fake::new().start().await;
    let put = json_of(&node, "put eu-only/user/42 alice --if-absent").await;
    let expected =
        json!({ "tag": "eu-only", "key": "user/42", "version": "1", "token": "dG9rZW4=" });
    assert_eq!(put, expected);
    let got = json_of(&node, "get eu-only/user/42 --level local").await;
    let meta = json!({
        "served_by": "eu/1", "level": "strong", "lag_ms": 7, "as_of": "1", "token": "dG9rZW4=",
    });
    let record = json!({
        "tag": "eu-only", "key": "user/42", "value": "alice", "version": "1",
    });
    let mut expected = record.clone();
    expected["meta"] = meta.clone();
    assert_eq!(got, expected);
    let scan = json_of(&node, "scan eu-only/user/ --limit 5").await;
    assert_eq!(
        scan,
        json!({ "records": [record], "more": false, "meta": meta })
    );
    let deleted = json_of(&node, "delete eu-only/user/42 --if-version 1").await;
    let expected = json!({
        "tag": "eu-only", "key": "user/42", "version": "2", "existed": true, "token": "dG9rZW4=",
    });
    assert_eq!(deleted, expected);
}

#[tokio::test]
async fn the_cluster_in_json_keeps_its_schema() {
    let node = Fake::new().start().await;
    let status = json_of(&node, "cluster status").await;
    let golden: Value = serde_json::from_str(include_str!("cluster_status.json")).expect("JSON");
    assert_eq!(status, golden, "{status:#}");
    let nodes = json_of(&node, "node list").await;
    assert_eq!(nodes["nodes"], golden["nodes"]);
    let policy = json_of(&node, "policy show").await;
    let text = "schema = \"domicile.policy/v1\"\n";
    assert_eq!(
        policy,
        json!({ "version": 1, "digest": "sha256:9f", "policy": text })
    );
    let moved = json_of(&node, "cluster transfer-leader --group 2 --to 3").await;
    assert_eq!(moved, json!({ "group": 2, "leader": 3 }));
    let upgrade = json_of(&node, "cluster upgrade status").await;
    let expected = json!({
        "level": 1, "nodes": golden["nodes"], "next": "start node eu/3",
    });
    assert_eq!(upgrade, expected);
    let finalized = json_of(&node, "cluster upgrade finalize").await;
    assert_eq!(finalized, json!({ "before": 1, "level": 2 }));
    let refilled = json_of(&node, "replication refill global --region us --yes").await;
    assert_eq!(refilled["incarnation"], 2);
    let rebuilt = json_of(&node, "region rebuild ap --yes").await;
    let expected = json!({
        "region": "ap", "nodes": 3, "incarnation": 2, "mirrors": ["global"],
        "unchanged": false,
    });
    assert_eq!(rebuilt, expected);
    let moved = json_of(&node, "node move eu/2=127.0.0.1:7412").await;
    let there = json!({ "node": 2, "region": "eu", "address": "127.0.0.1:7412" });
    assert_eq!(moved, json!({ "moved": [there] }));
    for (name, unchanged) in [("eu/3", false), ("3", true)] {
        let ran = run(Some(&node), &format!("node replace {name} -o json")).await;
        let replaced: Value = serde_json::from_str(&ran.out).expect("JSON");
        let expected = json!({ "node": 3, "replicas": 2, "unchanged": unchanged });
        assert_eq!(replaced, expected);
        assert_eq!(ran.err.contains("nothing was replaced"), unchanged);
    }
}

#[tokio::test]
async fn the_status_for_people() {
    let node = Fake::new().start().await;
    let ran = run(Some(&node), "cluster status").await;
    assert_eq!(ran.code, 0, "{}", ran.err);
    assert_eq!(ran.out, include_str!("cluster_status.txt"), "{}", ran.out);
}

#[tokio::test]
async fn the_bytes_alone_come_out_raw() {
    let node = Fake::new().start().await;
    let put = run_with(Some(&node), &["put", "eu/k", "-"], b"line\nand more").await;
    assert_eq!(put.code, 0, "{}", put.err);
    let got = run(Some(&node), "get eu/k -o raw").await;
    assert_eq!(got.out, "line\nand more");
    assert_eq!(got.err, "");
    let table = run(Some(&node), "get eu/k").await;
    assert!(table.out.contains("line\\nand more"), "{}", table.out);

    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), b"\xff\x00").expect("written");
    let path = file.path().to_str().expect("text");
    let put = run(Some(&node), &format!("put eu/file --file {path}")).await;
    assert_eq!(put.code, 0, "{}", put.err);
    let got = json_of(&node, "get eu/file").await;
    assert_eq!(got["value"], json!({ "base64": "/wA=" }));
    let lines = run(Some(&node), "scan eu -o jsonl").await;
    assert_eq!(lines.out.lines().count(), 2);
}

#[tokio::test]
async fn keys_that_are_no_text_have_an_encoding() {
    let node = Fake::new().start().await;
    let put = run(Some(&node), "put eu/ff00 v --key-encoding hex").await;
    assert_eq!(put.code, 0, "{}", put.err);
    assert!(put.out.contains("eu/ff00"), "{}", put.out);
    let got = json_of(&node, "get eu//wA= --key-encoding base64").await;
    assert_eq!(got["key"], json!({ "base64": "/wA=" }));
    assert_eq!(
        run(Some(&node), "get eu/xyz --key-encoding hex").await.code,
        2
    );
}

#[tokio::test]
async fn a_scan_stops_at_its_limit_and_says_so() {
    let node = Fake::new().start().await;
    for number in 0..5 {
        run(Some(&node), &format!("put eu/k{number} v")).await;
    }
    let ran = run(Some(&node), "scan eu --limit 2").await;
    assert!(
        ran.out.contains("k1") && !ran.out.contains("k2"),
        "{}",
        ran.out
    );
    assert!(
        ran.err.contains("2 records") && ran.err.contains("--limit"),
        "{}",
        ran.err
    );
    for format in ["jsonl", "raw"] {
        let ran = run(Some(&node), &format!("scan eu --limit 2 -o {format}")).await;
        assert!(
            ran.err.contains("there may be more"),
            "{format}: {}",
            ran.err
        );
    }
    let ran = run(Some(&node), "scan eu --start k3 --end k4 -o jsonl").await;
    assert_eq!(ran.out.lines().count(), 1);
    assert_eq!(run(Some(&node), "scan eu/k --start k3").await.code, 2);
}

#[tokio::test]
async fn exit_codes() {
    let node = Fake::new().start().await;
    let missing = run(Some(&node), "get eu/nobody").await;
    assert_eq!((missing.code, missing.out.as_str()), (5, ""));
    assert!(missing.err.contains("NOT_FOUND"), "{}", missing.err);
    assert_eq!(
        run(Some(&node), "delete eu/nobody --if-version 7")
            .await
            .code,
        5
    );
    assert_eq!(run(Some(&node), "node replace 9").await.code, 5);
    assert_eq!(run(Some(&node), "node replace us/3").await.code, 5);
    assert_eq!(run(Some(&node), "node replace eu/three").await.code, 2);
    let endless = "get eu/k --timeout 18446744073709551615ms";
    assert_eq!(run(Some(&node), endless).await.code, 2);
    let unsure = run(Some(&node), "replication refill global --region us").await;
    assert_eq!(unsure.code, 2);
    let unsure = run(Some(&node), "region rebuild ap").await;
    assert_eq!(unsure.code, 2);
    assert!(unsure.err.contains("--yes"), "{}", unsure.err);
    assert_ne!(run(Some(&node), "region rebuild eu --yes").await.code, 0);
    for wrong in [
        "",
        "frobnicate",
        "get",
        "get nokey",
        "get EU/k",
        "put eu/k v --if-absent --if-version 1",
        "put eu/k",
        "get eu/k --level bounded",
        "get eu/k --level strong --max-staleness 5s",
        "get eu/k --max-staleness 5",
        "get eu/k -o yaml",
        "explain NO_SUCH_REASON",
        "cluster init --name a --node eu=1:2 --policy f",
        "get eu/k --endpoints https://127.0.0.1:1",
    ] {
        let ran = run(Some(&node), wrong).await;
        assert_eq!(ran.code, 2, "{wrong}: {}", ran.err);
        assert_eq!(ran.out, "", "{wrong}");
    }
    let ran = run(None, "get eu/k --timeout 300ms").await;
    assert_eq!(ran.code, 3, "{}", ran.err);
    assert!(ran.err.contains("UNREACHABLE"), "{}", ran.err);
    let ran = run(Some(&node), "put eu/k --file /no/such/file").await;
    assert_eq!(ran.code, 1, "{}", ran.err);
}

#[tokio::test]
async fn refusals_have_their_exit_codes() {
    let cases = [
        (Reason::ResidencyViolation, Code::PermissionDenied, 4),
        (Reason::GrantDenied, Code::PermissionDenied, 4),
        (Reason::ConditionFailed, Code::Aborted, 5),
        (Reason::NotHeldHere, Code::FailedPrecondition, 1),
        (Reason::UnknownTag, Code::FailedPrecondition, 1),
        (Reason::DiskFull, Code::Unavailable, 3),
        (Reason::NoQuorum, Code::Unavailable, 3),
        (Reason::Internal, Code::Internal, 1),
        (Reason::InvalidArgument, Code::InvalidArgument, 1),
    ];
    for (reason, code, exit) in cases {
        let node = Fake::scripted(move |_, _| Act::Fail(failure(reason, code)));
        let node = node.start().await;
        let ran = run(Some(&node), "put eu/k v -o json --timeout 200ms").await;
        assert_eq!(ran.code, exit, "{reason}: {}", ran.err);
        let error: Value = serde_json::from_str(&ran.err).expect("JSON on stderr");
        let next = reason.next();
        let expected =
            json!({ "reason": reason.name(), "message": next, "next": next, "facts": {} });
        assert_eq!(error, expected);
    }
}

#[tokio::test]
async fn an_unknown_outcome_says_how_to_ask_again() {
    let node = Fake::scripted(|number, operation| match operation {
        Operation::Put(_) if number < 3 => Act::ServeAndHush,
        _ => Act::Serve,
    });
    let node = node.start().await;
    let ran = run(
        Some(&node),
        "put eu/k v --if-absent -o json --timeout 300ms",
    )
    .await;
    assert_eq!(ran.code, 3, "{}", ran.err);
    let error: Value = serde_json::from_str(&ran.err).expect("JSON on stderr");
    assert_eq!(error["reason"], "WRITE_OUTCOME_UNKNOWN");
    let id = error["facts"]["request_id"].as_str().expect("an id");
    let again = json_of(&node, &format!("put eu/k v --if-absent --request-id {id}")).await;
    assert_eq!(again["version"], "1");
    assert_eq!(node.fake.seen.lock().applied, 1);
}

#[tokio::test]
async fn a_cluster_is_formed() {
    let node = Fake::new().start().await;
    let file = tempfile::NamedTempFile::new().expect("a file");
    std::fs::write(file.path(), "schema = 1").expect("written");
    let policy = file.path().to_str().expect("text");
    let nodes = "--node eu/1=127.0.0.1:7401 --node eu/2=[::1]:7402";
    let ran = run(
        Some(&node),
        &format!("cluster init --name dev {nodes} --policy {policy} -o raw"),
    )
    .await;
    assert_eq!((ran.code, ran.out.as_str()), (0, "eu-2"), "{}", ran.err);
    let ran = run(
        Some(&node),
        &format!("cluster init --name again {nodes} --policy {policy}"),
    )
    .await;
    assert_eq!(ran.code, 1);
    assert!(ran.err.contains("error: ALREADY_FORMED"), "{}", ran.err);
    let ran = run(
        Some(&node),
        &format!("cluster init --name dev {nodes} --policy /no/such/file"),
    )
    .await;
    assert_eq!(ran.code, 1);
}

#[tokio::test]
async fn reasons_are_explained() {
    let ran = run(None, "explain NO_QUORUM").await;
    assert_eq!(ran.code, 0);
    assert!(ran.out.contains(Reason::NoQuorum.meaning()), "{}", ran.out);
    assert!(ran.out.contains(Reason::NoQuorum.next()), "{}", ran.out);
    let ran = run(None, "explain no-quorum -o json").await;
    let json: Value = serde_json::from_str(&ran.out).expect("JSON");
    assert_eq!(json["reason"], "NO_QUORUM");
    let ran = run(None, "explain NO_QUORM").await;
    assert_eq!(ran.code, 2);
    assert!(ran.err.contains("did you mean `NO_QUORUM`?"), "{}", ran.err);
}

#[tokio::test]
async fn help_completion_and_version() {
    for (arguments, expected) in [
        ("--help", "DOMICILE_ENDPOINTS"),
        ("get --help", "--max-staleness"),
        ("completion bash", "_domicile"),
        ("completion fish", "complete -c domicile"),
        ("version", env!("CARGO_PKG_VERSION")),
    ] {
        let ran = run(None, arguments).await;
        assert_eq!(ran.code, 0, "{arguments}: {}", ran.err);
        assert!(ran.out.contains(expected), "{arguments}: {}", ran.out);
        assert_eq!(ran.err, "", "{arguments}");
    }
}

#[tokio::test]
async fn nothing_is_coloured_where_nobody_asked() {
    let node = Fake::new().start().await;
    let ran = run(Some(&node), "cluster status").await;
    assert!(!ran.out.contains('\x1b') && !ran.err.contains('\x1b'));
    let ran = run(None, "--help").await;
    assert!(!ran.out.contains('\x1b'));
}

#[tokio::test]
async fn any_of_the_endpoints_will_do() {
    let node = Fake::new().start().await;
    let endpoints = format!("http://127.0.0.1:9,{}", node.endpoint());
    for command in ["put eu/k v", "get eu/k", "cluster status", "node replace 3"] {
        let ran = run(None, &format!("{command} --endpoints {endpoints}")).await;
        assert_eq!(ran.code, 0, "{command}: {}", ran.err);
    }
}

#[test]
fn the_fake_is_degraded() {
    assert_eq!(support::cluster_status().health(), v1::Health::Degraded);
}
