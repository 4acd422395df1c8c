//! The process among others: the files it may open, who reads its log, what it
//! prints, how it is told to end.

#![allow(clippy::unwrap_used, missing_docs)]

use std::fs::{self, File};
use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt as _;
use std::os::unix::process::ExitStatusExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Output, Stdio};
use std::time::Duration;

const PROGRAM: &str = env!("CARGO_BIN_EXE_domiciled");

/// How long anything may take on a busy machine.
const WAIT: Duration = Duration::from_secs(60);

/// Between two looks.
const STEP: Duration = Duration::from_millis(20);

const SIGKILL: i32 = 9;

/// Waits until something is so.
fn until(what: &str, mut so: impl FnMut() -> bool) {
    for _ in 0..WAIT.as_millis() / STEP.as_millis() {
        if so() {
            return;
        }
        std::thread::sleep(STEP);
    }
    panic!("{what}: not within {WAIT:?}");
}

/// A process that is killed when it is forgotten.
struct Process(Child);

impl Process {
    fn signal(&self, name: &str) {
        let told = Command::new("kill")
            .arg(format!("-{name}"))
            .arg(self.0.id().to_string())
            .status();
        assert!(told.unwrap().success());
    }

    fn ended(&mut self) -> ExitStatus {
        let mut status = None;
        until("the process ends", || {
            status = self.0.try_wait().unwrap();
            status.is_some()
        });
        status.unwrap()
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

fn free_address() -> SocketAddr {
    let port = TcpListener::bind("127.0.0.1:0").unwrap();
    port.local_addr().unwrap()
}

/// Starts a node from a shell that does something before.
fn start(before: &str, data: &Path, more: &[&str], stderr: Stdio) -> (Process, SocketAddr) {
    let address = free_address();
    let child = Command::new("sh")
        .arg("-c")
        .arg(format!("{before}; exec \"$0\" \"$@\""))
        .arg(PROGRAM)
        .args(["run", "--insecure-dev", "--region", "eu", "--node", "1"])
        .args(["--listen", &address.to_string()])
        .args(more)
        .arg("--data-dir")
        .arg(data)
        .stdin(Stdio::null())
        .stdout(Stdio::null())
        .stderr(stderr)
        .spawn()
        .unwrap();
    (Process(child), address)
}

/// Waits until a node takes connections.
fn up(address: SocketAddr) -> TcpStream {
    let mut socket = None;
    until("the node listens", || {
        socket = TcpStream::connect(address).ok();
        socket.is_some()
    });
    socket.unwrap()
}

/// A connection over which something was asked and answered, and on which
/// nothing is said any more.
fn caller(address: SocketAddr) -> TcpStream {
    let mut socket = up(address);
    let path = b"/grpc.health.v1.Health/Check";
    let mut headers = vec![0x83, 0x86, 0x04, path.len() as u8];
    headers.extend_from_slice(path);
    headers.extend_from_slice(b"\x01\x04node\x0f\x10\x10application/grpc\x00\x02te\x08trailers");
    let mut said = b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n".to_vec();
    let mut frame = |kind: u8, flags: u8, stream: u8, payload: &[u8]| {
        said.extend_from_slice(&[0, 0, payload.len() as u8, kind, flags, 0, 0, 0, stream]);
        said.extend_from_slice(payload);
    };
    frame(4, 0, 0, b"");
    frame(1, 4, 1, &headers);
    frame(0, 1, 1, &[0; 5]);
    socket.write_all(&said).unwrap();
    socket.set_read_timeout(Some(WAIT)).unwrap();
    until("an answer", || {
        let mut head = [0; 9];
        socket.read_exact(&mut head).unwrap();
        let length = u32::from_be_bytes([0, head[0], head[1], head[2]]);
        let mut payload = vec![0; length as usize];
        socket.read_exact(&mut payload).unwrap();
        // The header of the answer.
        head[3] == 1
    });
    socket
}

/// Every path below a directory, itself too.
fn tree(path: &Path) -> Vec<PathBuf> {
    let mut found = vec![path.to_owned()];
    if path.is_dir() {
        for entry in fs::read_dir(path).unwrap() {
            found.extend(tree(&entry.unwrap().path()));
        }
    }
    found
}

/// Files of RocksDB, too, and whatever the umask is.
#[test]
fn a_store_is_its_users_alone() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let (mut node, address) = start("umask 022", &data, &[], Stdio::null());
    drop(caller(address));
    node.signal("TERM");
    assert!(node.ended().success());
    let open: Vec<_> = tree(&data)
        .into_iter()
        .filter(|path| fs::metadata(path).unwrap().permissions().mode() & 0o077 != 0)
        .collect();
    assert!(open.is_empty(), "{open:?}");
    assert!(tree(&data).len() > 10);
}

/// The pipe of the log is full from the first line on, and nobody reads it.
#[test]
fn a_log_that_nobody_reads_holds_neither_the_node_nor_its_end() {
    let (reader, mut writer) = std::io::pipe().unwrap();
    let stderr = writer.try_clone().unwrap();
    std::thread::spawn(move || while writer.write_all(&[b'.'; 4096]).is_ok() {});
    std::thread::sleep(Duration::from_millis(300));
    let folder = tempfile::tempdir().unwrap();
    let metrics = free_address();
    let more = ["--set", &format!("metrics_listen={metrics}")];
    let (mut node, address) = start("true", folder.path(), &more, stderr.into());
    drop(caller(address));
    node.signal("TERM");
    assert_eq!(node.ended().code(), Some(0));
    drop(reader);
}

/// Who reads the log is gone.
#[test]
fn a_node_outlives_the_reader_of_its_log() {
    let (reader, writer) = std::io::pipe().unwrap();
    drop(reader);
    let folder = tempfile::tempdir().unwrap();
    let (mut node, address) = start("true", folder.path(), &[], writer.into());
    drop(caller(address));
    node.signal("INT");
    assert_eq!(node.ended().code(), Some(0));
}

/// A caller that does not let go keeps a stop for a moment, in which the second
/// signal comes. One that comes with the first is the same: some send it to a
/// process and to its group.
#[test]
fn a_second_signal_ends_a_node_at_once() {
    let folder = tempfile::tempdir().unwrap();
    let said = folder.path().join("said");
    let data = folder.path().join("data");
    let stderr = File::create(&said).unwrap();
    let (mut node, address) = start("true", &data, &[], stderr.into());
    let _held = caller(address);
    let says = |words: &str| fs::read_to_string(&said).unwrap().contains(words);
    node.signal("INT");
    node.signal("TERM");
    until("it stops", || says("stopping"));
    std::thread::sleep(Duration::from_millis(400));
    assert!(!says("told to stop twice"));
    node.signal("INT");
    assert_eq!(node.ended().signal(), Some(SIGKILL));
    assert!(says("told to stop twice"));
}

#[test]
fn a_closed_terminal_ends_a_node_in_order_unless_it_is_to_outlive_it() {
    let folder = tempfile::tempdir().unwrap();
    let data = |name: &str| folder.path().join(name);
    let (mut node, address) = start("true", &data("a"), &[], Stdio::null());
    drop(caller(address));
    node.signal("HUP");
    assert_eq!(node.ended().code(), Some(0));
    let (mut node, address) = start("trap '' HUP", &data("b"), &[], Stdio::null());
    drop(caller(address));
    node.signal("HUP");
    std::thread::sleep(Duration::from_millis(200));
    drop(caller(address));
    node.signal("TERM");
    assert_eq!(node.ended().code(), Some(0));
}

/// The processor time that a process has taken, in clock ticks.
fn ticks(node: &Process) -> u64 {
    let stat = fs::read_to_string(format!("/proc/{}/stat", node.0.id())).unwrap();
    let fields: Vec<_> = stat.rsplit(") ").next().unwrap().split(' ').collect();
    let ticks = |at: usize| fields[at].parse::<u64>().unwrap();
    ticks(11) + ticks(12)
}

/// More sockets than the process may open files: it says at its start what does
/// not fit, spins nowhere, and callers still get in.
#[test]
fn sockets_take_neither_all_files_nor_a_core() {
    let folder = tempfile::tempdir().unwrap();
    let said = folder.path().join("said");
    let data = folder.path().join("data");
    let stderr = File::create(&said).unwrap();
    let (mut node, address) = start("ulimit -n 256", &data, &[], stderr.into());
    drop(caller(address));
    let sockets: Vec<_> = (0..300)
        .map(|_| TcpStream::connect(address).unwrap())
        .collect();
    drop(caller(address));
    let before = ticks(&node);
    std::thread::sleep(Duration::from_secs(1));
    let spent = ticks(&node) - before;
    assert!(spent < 50, "{spent} hundredths of a second");
    let open = fs::read_dir(format!("/proc/{}/fd", node.0.id()))
        .unwrap()
        .count();
    assert!(open < 128, "{open} files are open");
    drop(caller(address));
    drop(sockets);
    node.signal("TERM");
    assert_eq!(node.ended().code(), Some(0));
    let said = fs::read_to_string(&said).unwrap();
    for words in [
        "`limits.connections_max` is 10000",
        "is 256",
        "ask for nothing",
    ] {
        assert!(said.contains(words), "{words}: {said}");
    }
}

#[test]
fn a_node_that_may_open_too_few_files_does_not_start() {
    let folder = tempfile::tempdir().unwrap();
    let data = folder.path().join("data");
    let (node, _) = start("ulimit -n 100", &data, &[], Stdio::piped());
    let mut node = node;
    let code = node.ended().code();
    let mut said = String::new();
    node.0
        .stderr
        .take()
        .unwrap()
        .read_to_string(&mut said)
        .unwrap();
    assert_eq!(code, Some(1));
    assert!(
        said.contains("the limit of open files") && said.contains("100"),
        "{said}"
    );
    assert!(!data.exists());
}

fn output(command: &mut Command) -> Output {
    command.stdin(Stdio::null()).output().unwrap()
}

/// What `domiciled` prints goes to a full disk, and to nobody.
#[test]
fn what_cannot_be_printed_is_one_line_or_none_and_never_a_panic() {
    let folder = tempfile::tempdir().unwrap();
    let config = folder.path().join("domiciled.toml");
    let text = "node = 1\nregion = \"eu\"\ndata_dir = \"data\"\ninsecure_dev = true\n";
    fs::write(&config, text).unwrap();
    let config = config.display().to_string();
    let data = folder.path().join("data");
    let (mut node, address) = start("true", &data, &[], Stdio::null());
    drop(caller(address));
    node.signal("TERM");
    assert!(node.ended().success());
    let data = data.display().to_string();
    let commands: [&[&str]; 3] = [
        &["sample-config"],
        &["check-config", "--config", &config],
        &["inspect", &data],
    ];
    for arguments in commands {
        let mut command = Command::new(PROGRAM);
        let full = File::options().write(true).open("/dev/full").unwrap();
        let said = output(command.args(arguments).stdout(full));
        let words = String::from_utf8_lossy(&said.stderr).into_owned();
        assert_eq!(said.status.code(), Some(1), "{arguments:?}: {words}");
        assert_eq!(words.lines().count(), 1, "{arguments:?}: {words}");
        assert!(words.contains("No space left"), "{words}");
        let (reader, closed) = std::io::pipe().unwrap();
        drop(reader);
        let mut command = Command::new(PROGRAM);
        let said = output(command.args(arguments).stdout(closed));
        assert_eq!(said.status.code(), Some(141), "{arguments:?}");
        assert!(said.stderr.is_empty(), "{said:?}");
    }
}

/// A path is shown in full, and what only a shell understands is refused.
#[test]
fn a_data_directory_is_what_it_looks_like() {
    let folder = tempfile::tempdir().unwrap();
    let check = |data_dir: &str| {
        let said = Command::new(PROGRAM)
            .args([
                "check-config",
                "--insecure-dev",
                "--region",
                "eu",
                "--node",
                "1",
            ])
            .args(["--data-dir", data_dir])
            .current_dir(folder.path())
            .output()
            .unwrap();
        let words = [said.stdout, said.stderr].concat();
        (said.status.code(), String::from_utf8(words).unwrap())
    };
    let (code, said) = check("data");
    assert_eq!(code, Some(0), "{said}");
    let full = fs::canonicalize(folder.path()).unwrap().join("data");
    assert!(said.contains(&full.display().to_string()), "{said}");
    for wrong in ["~/data", "$HOME/data", "data ", " data", ""] {
        let (code, said) = check(wrong);
        assert_eq!(code, Some(1), "`{wrong}`: {said}");
    }
}

/// The demo with a folder for its temporary directory.
fn demo(script: &str, folder: &Path, stdout: Stdio) -> Process {
    let path = folder.join("script.txt");
    fs::write(&path, script).unwrap();
    let child = Command::new(PROGRAM)
        .args(["demo", "--small", "--exec"])
        .arg(path)
        .env("TMPDIR", temporary(folder))
        .stdin(Stdio::null())
        .stdout(stdout)
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    Process(child)
}

fn temporary(folder: &Path) -> PathBuf {
    let temporary = folder.join("tmp");
    fs::create_dir_all(&temporary).unwrap();
    temporary
}

/// What a demo said, once it ended.
fn end_of(mut demo: Process, folder: &Path) -> (Option<i32>, String) {
    let status = demo.ended();
    let mut said = String::new();
    let mut stderr = demo.0.stderr.take().unwrap();
    stderr.read_to_string(&mut said).unwrap();
    let left = fs::read_dir(temporary(folder)).unwrap().count();
    assert_eq!(left, 0, "{status}: {said}");
    (status.code(), said)
}

/// At its start, and while a command runs.
#[test]
fn a_demo_that_is_told_to_end_leaves_nothing() {
    for (signal, code) in [("TERM", 143), ("HUP", 129), ("INT", 130)] {
        let folder = tempfile::tempdir().unwrap();
        let shown = folder.path().join("shown");
        let stdout = File::create(&shown).unwrap();
        let running = demo("sleep 60\n", folder.path(), stdout.into());
        let begun = || match signal {
            "HUP" => fs::read_dir(temporary(folder.path())).unwrap().count() > 0,
            _ => fs::read_to_string(&shown).unwrap().contains("sleep 60"),
        };
        until("the demo is under way", begun);
        running.signal(signal);
        assert_eq!(end_of(running, folder.path()), (Some(code), String::new()));
    }
}

/// A usual soft limit is raised; where that is not allowed, the limit is named.
#[test]
fn a_demo_has_the_files_it_needs_or_says_so() {
    let folder = tempfile::tempdir().unwrap();
    let script = folder.path().join("script.txt");
    fs::write(&script, "status\n").unwrap();
    let run = |limit: &str| {
        let mut shell = Command::new("sh");
        shell
            .arg("-c")
            .arg(format!("ulimit {limit}; exec \"$0\" \"$@\""));
        let demo = [PROGRAM, "demo", "--small", "--exec"];
        let said = output(shell.args(demo).arg(&script));
        let words = String::from_utf8_lossy(&said.stderr).into_owned();
        (said.status.code(), words)
    };
    assert_eq!(run("-Sn 100"), (Some(0), String::new()));
    let (code, said) = run("-n 100");
    assert_eq!(code, Some(1), "{said}");
    assert!(said.contains("is 100, and this demo needs 300"), "{said}");
}

#[test]
fn a_demo_that_cannot_print_ends_and_leaves_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let (reader, closed) = std::io::pipe().unwrap();
    drop(reader);
    let ended = end_of(
        demo("status\n", folder.path(), closed.into()),
        folder.path(),
    );
    assert_eq!(ended, (Some(141), String::new()));
    let full = File::options().write(true).open("/dev/full").unwrap();
    let (code, said) = end_of(demo("status\n", folder.path(), full.into()), folder.path());
    assert_eq!(code, Some(1), "{said}");
    assert_eq!(said.lines().count(), 1, "{said}");
    assert!(said.contains("No space left"), "{said}");
}
