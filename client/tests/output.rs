//! The program where nobody reads its output, and where it goes on looking.

#![allow(clippy::unwrap_used)]

mod support;

use std::fs::File;
use std::io::{BufRead as _, BufReader};
use std::process::{Command, Output, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use support::{Fake, Running};

/// How long anything may take on a busy machine.
const WAIT: Duration = Duration::from_secs(60);

fn program(node: &Running, arguments: &str) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_domicile"));
    command
        .args(arguments.split_whitespace())
        .env("DOMICILE_ENDPOINTS", node.endpoint())
        .stdin(Stdio::null())
        .stderr(Stdio::piped());
    command
}

async fn output(mut command: Command) -> Output {
    let ran = tokio::task::spawn_blocking(move || command.output());
    ran.await.unwrap().unwrap()
}

/// What prints something, of each kind.
const PRINTING: [&str; 6] = [
    "put eu/key value",
    "scan eu -o jsonl",
    "cluster status",
    "cluster status --watch",
    "completion bash",
    "explain NO_QUORUM",
];

#[tokio::test]
async fn a_reader_that_has_gone_ends_the_program_quietly() {
    let node = Fake::new().start().await;
    for arguments in PRINTING {
        let (reader, closed) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = program(&node, arguments);
        command.stdout(closed);
        let ran = output(command).await;
        assert_eq!(ran.status.code(), Some(141), "{arguments}: {ran:?}");
        assert!(ran.stderr.is_empty(), "{arguments}: {ran:?}");
    }
}

#[tokio::test]
async fn a_full_disk_behind_stdout_is_one_line() {
    let node = Fake::new().start().await;
    for arguments in PRINTING {
        let full = File::options().write(true).open("/dev/full").unwrap();
        let mut command = program(&node, arguments);
        command.stdout(full);
        let ran = output(command).await;
        let said = String::from_utf8_lossy(&ran.stderr).into_owned();
        assert_eq!(ran.status.code(), Some(1), "{arguments}: {said}");
        assert_eq!(said.lines().count(), 1, "{arguments}: {said}");
    }
}

/// The lines of a stream, as they come.
fn lines(stream: impl std::io::Read + Send + 'static) -> mpsc::Receiver<String> {
    let (line, lines) = mpsc::channel();
    std::thread::spawn(move || {
        for read in BufReader::new(stream).lines().map_while(Result::ok) {
            line.send(read).ok();
        }
    });
    lines
}

/// Started while the node is away, and over its end.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_watch_outlives_a_node_that_is_away() {
    let (fake, address) = Fake::new().start().await.stop().await;
    let mut command = Command::new(env!("CARGO_BIN_EXE_domicile"));
    let mut watch = command
        .args(["cluster", "status", "--watch", "-o", "jsonl"])
        .args(["--timeout", "300ms"])
        .env("DOMICILE_ENDPOINTS", format!("http://{address}"))
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let shown = lines(watch.stdout.take().unwrap());
    let said = lines(watch.stderr.take().unwrap());
    let away = said.recv_timeout(WAIT).unwrap();
    assert!(
        away.contains("still looking") && away.contains(&address.to_string()),
        "{away}"
    );
    let node = fake.start_at(address).await;
    let back = said.recv_timeout(WAIT).unwrap();
    assert!(back.contains("answers again"), "{back}");
    assert!(shown.recv_timeout(WAIT).unwrap().contains("health"));
    drop(node.stop().await);
    let away = said.recv_timeout(WAIT).unwrap();
    assert!(away.contains("still looking"), "{away}");
    let pid = watch.id().to_string();
    let told = Command::new("kill").args(["-INT", &pid]).status();
    assert!(told.unwrap().success());
    assert_eq!(watch.wait().unwrap().code(), Some(130));
    assert_eq!(said.recv(), Err(mpsc::RecvError), "it says so once");
}
