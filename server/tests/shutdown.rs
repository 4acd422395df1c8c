//! A process that is told to stop, stops in order.

#![allow(clippy::unwrap_used, missing_docs)]

use std::net::TcpListener;
use std::process::{Child, Command, Stdio};
use std::time::Duration;

/// How long the nodes run before they are told to stop: until their tasks are
/// in full swing.
const RUN: Duration = Duration::from_millis(2000);

fn start(data: &std::path::Path) -> Child {
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    let listen = port.local_addr().unwrap().to_string();
    drop(port);
    Command::new(env!("CARGO_BIN_EXE_domiciled"))
        .args(["run", "--insecure-dev", "--region", "eu", "--node", "1"])
        .args(["--listen", &listen, "--data-dir"])
        .arg(data)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

/// Several, because what can go wrong at the end is a race.
#[test]
fn a_node_that_is_told_to_stop_exits_with_success() {
    let folders: Vec<_> = (0..6).map(|_| tempfile::tempdir().unwrap()).collect();
    let nodes: Vec<_> = folders.iter().map(|f| start(f.path())).collect();
    std::thread::sleep(RUN);
    for node in &nodes {
        let told = Command::new("kill").arg(node.id().to_string()).status();
        assert!(told.unwrap().success());
    }
    for node in nodes {
        let output = node.wait_with_output().unwrap();
        let said = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(0), "{said}");
    }
}
