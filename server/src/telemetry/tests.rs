use std::io;
use std::sync::atomic::Ordering;

use axum::body::{Body, to_bytes};
use axum::http::{Request, StatusCode};
use parking_lot::Mutex;
use tower::ServiceExt;
use tracing_subscriber::fmt::MakeWriter;

use super::*;
use crate::config::{Log, LogFormat, LogLevel};

/// The lines of the text that begin with this.
fn lines<'t>(text: &'t str, start: &str) -> Vec<&'t str> {
    text.lines()
        .filter(|line| line.starts_with(start))
        .collect()
}

fn observed() -> (Metrics, Group) {
    let metrics = Metrics::new();
    metrics.observe_rpc("/domicile.v1.KvService/Put", "OK", Duration::from_millis(3));
    metrics.observe_operation(Operation::Get, None);
    metrics.observe_staleness(Duration::from_secs(2));
    metrics.observe_log_fsync(Duration::from_micros(700));
    metrics.observe_log_batch(3);
    metrics.set_peer_connected("eu", 2, true);
    metrics.set_clock_ahead(-250);
    metrics.set_disk_free(u64::MAX);
    metrics.set_disk_free_inodes(1000);
    metrics.set_connections(Connection::Client, 3);
    metrics.observe_connection_refused(Connection::Unknown);
    metrics.set_log_lines_dropped(5);
    metrics.set_disk_state(true, Duration::from_millis(2500));
    metrics.set_serving(true, false);
    let group = metrics.group(7, "eu-only");
    (metrics, group)
}

#[test]
fn every_metric_is_exported_under_its_name_with_its_unit_and_sentence() {
    let (metrics, _group) = observed();
    let text = metrics.encode();
    for what in names::ALL {
        let family = what
            .name
            .trim_end_matches("_total")
            .trim_end_matches("_info");
        assert!(
            text.contains(&format!("# HELP {family} {}\n", what.help)),
            "{}",
            what.name
        );
        assert_eq!(lines(&text, &format!("# HELP {family} ")).len(), 1);
        assert_eq!(lines(&text, &format!("# TYPE {family} ")).len(), 1);
        let samples = lines(&text, what.name);
        assert!(!samples.is_empty(), "{} has no sample", what.name);
        if let Some(unit) = what.unit {
            assert!(
                text.contains(&format!("# UNIT {family} {unit}\n")),
                "{}",
                what.name
            );
        }
        assert!(what.help.ends_with('.') && what.name.starts_with("domicile_"));
    }
    assert_eq!(
        lines(&text, "# HELP ").len(),
        names::ALL.len(),
        "nothing is exported besides"
    );
    assert!(text.ends_with("# EOF\n"));
}

#[test]
fn the_samples_are_what_was_observed() {
    let (metrics, group) = observed();
    metrics.observe_operation(Operation::Get, None);
    metrics.observe_operation(Operation::Put, Some(Reason::DiskFull));
    metrics.set_log_lines_dropped(7);
    group.set_has_leader(true);
    group.observe_leader_change();
    group.set_indexes(41, 42);
    metrics.set_peer_connected("eu", 3, true);
    metrics.set_peer_connected("eu", 3, false);
    let text = metrics.encode();
    for line in [
        concat!(
            "domicile_build_info{version=\"",
            env!("CARGO_PKG_VERSION"),
            "\"} 1"
        ),
        "domicile_operations_total{kind=\"get\",outcome=\"OK\"} 2",
        "domicile_operations_total{kind=\"put\",outcome=\"DISK_FULL\"} 1",
        "domicile_raft_has_leader{group=\"7\",tag=\"eu-only\"} 1",
        "domicile_raft_leader_changes_total{group=\"7\",tag=\"eu-only\"} 1",
        "domicile_raft_applied_index{group=\"7\",tag=\"eu-only\"} 41",
        "domicile_raft_last_index{group=\"7\",tag=\"eu-only\"} 42",
        "domicile_peer_connected{region=\"eu\",node=\"2\"} 1",
        "domicile_peer_connected{region=\"eu\",node=\"3\"} 0",
        "domicile_disk_free_bytes{} 18446744073709551615",
        "domicile_disk_free_inodes{} 1000",
        "domicile_connections{class=\"client\"} 3",
        "domicile_connections_refused_total{class=\"unknown\"} 1",
        "domicile_log_lines_dropped_total 7",
        "domicile_disk_full{} 1",
        "domicile_disk_silent_seconds{} 2.5",
        "domicile_serving{what=\"reads\"} 1",
        "domicile_serving{what=\"writes\"} 0",
        "domicile_log_fsync_duration_seconds_sum 0.0007",
        "domicile_log_fsync_duration_seconds_bucket{le=\"0.0005\"} 0",
        "domicile_log_fsync_duration_seconds_bucket{le=\"0.001\"} 1",
        "domicile_log_batch_entries_bucket{le=\"2.0\"} 0",
        "domicile_log_batch_entries_bucket{le=\"4.0\"} 1",
        "domicile_log_batch_entries_sum 3.0",
    ] {
        assert!(text.lines().any(|shown| shown == line), "{line}\n{text}");
    }
    let method = "method=\"/domicile.v1.KvService/Put\",code=\"OK\"";
    let count = format!("domicile_rpc_duration_seconds_count{{{method}}} 1");
    assert!(text.contains(&count), "{text}");
}

#[test]
fn what_nobody_measured_is_not_exported_as_zero() {
    let text = Metrics::new().encode();
    assert!(
        lines(&text, "domicile_disk_free_bytes").is_empty(),
        "{text}"
    );
}

#[test]
fn every_reason_has_a_counter_of_its_own() {
    let metrics = Metrics::new();
    for kind in Operation::ALL {
        metrics.observe_operation(kind, None);
        for reason in Reason::ALL {
            metrics.observe_operation(kind, Some(*reason));
        }
    }
    let text = metrics.encode();
    let samples = lines(&text, "domicile_operations_total{");
    assert_eq!(
        samples.len(),
        Operation::ALL.len() * (Reason::ALL.len() + 1)
    );
    assert!(samples.iter().all(|line| line.ends_with("} 1")), "{text}");
}

#[test]
fn what_is_gone_is_no_longer_exported() {
    let (metrics, group) = observed();
    drop(group);
    metrics.forget_peer("eu", 2);
    let text = metrics.encode();
    assert!(lines(&text, "domicile_raft_").is_empty(), "{text}");
    assert!(lines(&text, "domicile_peer_").is_empty(), "{text}");
}

#[test]
fn a_bound_is_included_in_its_bucket() {
    let histogram = Histogram::counts(&[1, 10]);
    for count in [0, 1, 2, 10, 11, 1000] {
        histogram.observe_count(count);
    }
    histogram.observe_time(Duration::MAX);
    let mut registry = Registry::default();
    registry.register("h", "h", histogram);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).expect("written");
    for line in [
        "le=\"1.0\"} 2",
        "le=\"10.0\"} 4",
        "le=\"+Inf\"} 7",
        "h_count 7",
        "h_sum 31536000001024.0",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[test]
fn no_observation_is_lost_between_threads() {
    let metrics = Metrics::new();
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                for _ in 0..10_000 {
                    metrics.observe_staleness(Duration::from_millis(1));
                    metrics.observe_operation(Operation::Get, None);
                }
            });
        }
    });
    let text = metrics.encode();
    assert!(
        text.contains("domicile_read_staleness_seconds_count 40000"),
        "{text}"
    );
    assert!(
        text.contains("{kind=\"get\",outcome=\"OK\"} 40000"),
        "{text}"
    );
}

#[tokio::test]
async fn metrics_and_liveness_are_served() {
    let (metrics, _group) = observed();
    let router = router(metrics.clone());
    let ask = async |path: &str| {
        let request = Request::get(path).body(Body::empty()).expect("a request");
        let response = router.clone().oneshot(request).await.expect("an answer");
        let status = response.status();
        let content = response.headers().get("content-type").cloned();
        let body = to_bytes(response.into_body(), 1 << 20)
            .await
            .expect("a body");
        let content = content.map(|content| content.to_str().expect("text").to_owned());
        (
            status,
            content,
            String::from_utf8(body.to_vec()).expect("text"),
        )
    };
    let (status, content, body) = ask("/metrics").await;
    assert_eq!((status, body), (StatusCode::OK, metrics.encode()));
    assert!(
        content
            .expect("a type")
            .starts_with("application/openmetrics-text; version=1.0.0")
    );
    assert_eq!(ask("/healthz").await.2, "ok\n");
    assert_eq!(ask("/").await.0, StatusCode::NOT_FOUND);
}

#[derive(Clone, Default)]
struct Written(Arc<Mutex<Vec<u8>>>);

impl io::Write for Written {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.lock().extend_from_slice(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

impl<'w> MakeWriter<'w> for Written {
    type Writer = Written;
    fn make_writer(&'w self) -> Written {
        self.clone()
    }
}

impl Written {
    fn take(&self) -> String {
        String::from_utf8(std::mem::take(&mut self.0.lock())).expect("text")
    }
}

/// A clock that stands still.
fn still() -> quiet::Clock {
    Arc::new(|| Duration::ZERO)
}

/// A clock by which no line is too many.
fn a_minute_a_line() -> quiet::Clock {
    let minutes = AtomicU64::new(0);
    Arc::new(move || Duration::from_secs(60 * minutes.fetch_add(1, Ordering::Relaxed)))
}

/// What goes wrong with one node goes wrong for each of its groups, many times a
/// minute.
#[test]
fn a_line_that_repeats_does_not_flood_the_log() {
    let written = Written::default();
    let seconds = Arc::new(AtomicU64::new(0));
    let clock: quiet::Clock = {
        let seconds = seconds.clone();
        Arc::new(move || Duration::from_secs(seconds.load(Ordering::Relaxed)))
    };
    let log = Log {
        level: LogLevel::Debug,
        format: LogFormat::Text,
    };
    let (subscriber, logging) = logging::build(&log, false, written.clone(), clock);
    let flood = || {
        for group in 0..1000 {
            tracing::warn!(target: "openraft::core", group, "not sent");
            tracing::warn!(target: "domicile_server::net", group, "not taken");
            tracing::debug!(target: "domicile_server::net", group, "details");
        }
    };
    let count = |text: &str, what: &str| text.lines().filter(|l| l.contains(what)).count();
    tracing::subscriber::with_default(subscriber, || {
        for second in 0..59 {
            seconds.store(second, Ordering::Relaxed);
            flood();
        }
        let text = written.take();
        assert_eq!(count(&text, "not sent"), 1);
        assert_eq!(count(&text, "not taken"), 20);
        // Who asks for details gets all of them.
        assert_eq!(count(&text, "details"), 59_000);
        logging.tell_left_out_once();
        let text = written.take();
        assert_eq!(text.lines().count(), 1, "{text}");
        for part in [
            "117979",
            "openraft::core 58999",
            "domicile_server::net 58980",
        ] {
            assert!(text.contains(part), "{part}: {text}");
        }
        // Nothing more was left out, and the next minute begins anew.
        logging.tell_left_out_once();
        seconds.store(60, Ordering::Relaxed);
        flood();
        let text = written.take();
        assert_eq!(count(&text, "left out"), 0, "{text}");
        assert_eq!(count(&text, "not sent"), 1);
    });
}

/// Logs at every level, as our own crate and as a library.
fn log_everything() {
    macro_rules! at {
        ($($level:ident)*) => {$(
            tracing::$level!(target: "domicile_server::raft", "own-{}", stringify!($level));
            tracing::$level!(target: "domiciled", "main-{}", stringify!($level));
            tracing::$level!(target: "h2::codec", "library-{}", stringify!($level));
        )*};
    }
    at!(error warn info debug trace);
}

#[test]
fn libraries_never_log_below_warn() {
    let all = ["error", "warn", "info", "debug", "trace"];
    let levels = [
        LogLevel::Error,
        LogLevel::Warn,
        LogLevel::Info,
        LogLevel::Debug,
        LogLevel::Trace,
    ];
    let written = Written::default();
    let log = Log {
        level: LogLevel::Info,
        format: LogFormat::Text,
    };
    let (subscriber, logging) = logging::build(&log, false, written.clone(), a_minute_a_line());
    tracing::subscriber::with_default(subscriber, || {
        for (nth, level) in levels.into_iter().enumerate() {
            logging.set_level(level).expect("the log runs");
            log_everything();
            let text = written.take();
            for (at, name) in all.into_iter().enumerate() {
                assert_eq!(
                    text.contains(&format!("own-{name}")),
                    at <= nth,
                    "{level:?} {name}"
                );
                assert_eq!(text.contains(&format!("main-{name}")), at <= nth);
                let library = text.contains(&format!("library-{name}"));
                assert_eq!(library, at <= nth.min(1), "{level:?} {name}");
            }
        }
    });
}

/// What openraft says of a hand-over or a stop is no error; what it says of a disk
/// is.
#[test]
fn what_ends_in_good_order_is_no_error_in_the_log() {
    let written = Written::default();
    let log = Log::default();
    let (subscriber, logging) = logging::build(&log, false, written.clone(), a_minute_a_line());
    tracing::subscriber::with_default(subscriber, || {
        let log_all = || {
            tracing::error!(target: "openraft::core::heartbeat::worker", "nobody takes a vote");
            tracing::error!(target: "openraft::raft::raft_inner", "nobody takes a message");
            tracing::error!(target: "openraft::core::raft_core", "the storage failed");
            tracing::error!(target: "openraft::core::sm::worker", "an entry was not applied");
        };
        log_all();
        let text = written.take();
        assert!(!text.contains("nobody takes"), "{text}");
        assert!(text.contains("the storage failed") && text.contains("not applied"));
        logging.set_level(LogLevel::Debug).expect("the log runs");
        log_all();
        let text = written.take();
        assert_eq!(text.matches("nobody takes").count(), 2, "{text}");
    });
}

#[test]
fn text_is_colored_on_request_only_and_json_is_one_object_a_line() {
    let written = Written::default();
    let mut log = Log::default();
    let mut line = |format, colored| {
        log.format = format;
        let (subscriber, _) = logging::build(&log, colored, written.clone(), still());
        tracing::subscriber::with_default(subscriber, || {
            tracing::info!(target: "domiciled", group = 7, evil = "\x1b[31m\n", "ready");
        });
        written.take()
    };
    assert!(line(LogFormat::Text, true).contains("\x1b["));
    let text = line(LogFormat::Text, false);
    assert!(
        !text.contains('\x1b') && text.contains("ready group=7"),
        "{text}"
    );
    for colored in [true, false] {
        let text = line(LogFormat::Json, colored);
        assert_eq!(text.lines().count(), 1);
        for part in ["\"level\":\"INFO\"", "\"message\":\"ready\"", "\"group\":7"] {
            assert!(text.contains(part), "{part}: {text}");
        }
        assert!(
            text.starts_with('{')
                && text.ends_with("}\n")
                && !text.contains('\x1b')
                && !text.contains("fields")
        );
    }
}

#[test]
fn a_second_log_is_an_error_and_no_panic() {
    Logging::start(&Log::default()).expect("the first");
    assert!(Logging::start(&Log::default()).is_err());
}
