//! The load generator works at all: the ceilings run for a moment each.

use std::path::Path;
use std::time::Duration;

use domicile_benches::disk::{self, Sync};
use domicile_benches::echo::{Echo, EchoServer};
use domicile_benches::load::Window;

const WINDOW: Window = Window {
    warm_up: Duration::from_millis(20),
    duration: Duration::from_millis(100),
};

#[tokio::test]
async fn the_disk_syncs() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    for sync in [Sync::Append256, Sync::Overwrite256, Sync::Append64k] {
        let measured = disk::run(sync, 2, directory.path(), WINDOW)
            .await
            .expect("the disk is writable");
        assert!(measured.operations > 0, "{sync:?}: {measured:?}");
    }
    let left = std::fs::read_dir(directory.path()).expect("readable");
    assert_eq!(left.count(), 0, "every file is removed");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_echo_answers() {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let program = Path::new(env!("CARGO_BIN_EXE_domicile-bench"));
    let server = EchoServer::start(program, directory.path())
        .await
        .expect("the server starts");
    for echo in [Echo::Unary, Echo::Stream, Echo::Frames] {
        let measured = server
            .run(echo, 8, 2, 256, WINDOW)
            .await
            .expect("the server answers");
        assert!(measured.operations > 0, "{echo:?}: {measured:?}");
        assert_eq!(measured.errors_total() + measured.wrong, 0, "{measured:?}");
    }
    server.process.stop().await.expect("the server ends");
}
