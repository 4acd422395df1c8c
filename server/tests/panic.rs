//! A panic anywhere ends the process, also where nobody reads what it says.

#![allow(clippy::unwrap_used, missing_docs)]

use std::io::Read;
use std::process::{Command, Stdio};
use std::time::Duration;

/// Set in the process that is to panic.
const CHILD: &str = "DOMICILE_TEST_PANICS";

/// How long the end may take: more than what is waited for at most, on a busy
/// machine.
const WAIT: Duration = Duration::from_secs(20);

/// What the child does: one of its tasks panics, and the others go on.
#[test]
fn child() {
    if std::env::var_os(CHILD).is_none() {
        return;
    }
    domicile_server::node::end_on_panic();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .enable_all()
        .build()
        .unwrap();
    runtime.block_on(async {
        let env = domicile_server::env::Env::real();
        let _task = env.spawn("doomed", async { panic!("seen by nobody") });
        std::future::pending::<()>().await
    });
}

fn start(stderr: Stdio) -> std::process::Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "child", "--nocapture"])
        .env(CHILD, "1")
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap()
}

/// Waits for a process to end; it is killed if it does not.
fn ended(child: &mut std::process::Child) -> Option<std::process::ExitStatus> {
    let step = Duration::from_millis(20);
    for _ in 0..WAIT.as_millis() / step.as_millis() {
        if let Some(status) = child.try_wait().unwrap() {
            return Some(status);
        }
        std::thread::sleep(step);
    }
    child.kill().unwrap();
    child.wait().unwrap();
    None
}

#[test]
fn a_panic_in_a_task_ends_the_process_and_says_where() {
    let mut child = start(Stdio::piped());
    let mut stderr = child.stderr.take().unwrap();
    let status = ended(&mut child).expect("it ends");
    let mut said = String::new();
    stderr.read_to_string(&mut said).unwrap();
    assert!(!status.success(), "{status}");
    assert!(said.contains("tests/panic.rs:"), "{said}");
    assert!(said.contains("seen by nobody"), "{said}");
}

/// The pipe of the log is full, and nobody reads it.
#[test]
fn a_panic_ends_the_process_though_its_log_is_stuck() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let stuck = writer.try_clone().unwrap();
    // Fills the pipe from a thread that stays in its last write.
    std::thread::spawn(move || {
        use std::io::Write;
        while writer.write_all(&[b'.'; 4096]).is_ok() {}
    });
    std::thread::sleep(Duration::from_millis(300));
    let mut child = start(stuck.into());
    let status = ended(&mut child);
    drop(reader);
    assert!(!status.expect("it ends").success());
}
