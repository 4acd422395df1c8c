use std::path::Path;

use clap::Parser;

use super::*;

use super::settings::{Fallback, SETTINGS, Setting};

#[derive(clap::Parser)]
struct Command {
    #[command(flatten)]
    flags: Flags,
}

fn flags(arguments: &[&str]) -> Flags {
    Command::try_parse_from([&["domiciled"], arguments].concat())
        .map(|command| command.flags)
        .expect("the flags parse")
}

fn variables(pairs: &[(&str, &str)]) -> Vec<(String, String)> {
    let own = |(name, text): &(&str, &str)| (name.to_string(), text.to_string());
    pairs.iter().map(own).collect()
}

const GOOD: &str = "node = 1\nregion = \"eu\"\ndata_dir = \"/d\"\ninsecure_dev = true\n";

fn load(file: &str, environment: &[(&str, &str)], arguments: &[&str]) -> Result<Loaded> {
    let file = Some(("node.toml".to_owned(), file.to_owned()));
    Loaded::from_layers(file, &variables(environment), &flags(arguments))
}

/// The message of the error of `GOOD` and more.
fn refused(more: &str, environment: &[(&str, &str)], arguments: &[&str]) -> String {
    let loaded = load(&format!("{GOOD}{more}"), environment, arguments);
    loaded.expect_err("it is refused").message
}

#[test]
fn the_defaults_are_those_of_the_catalogue() {
    let config = load(GOOD, &[], &[]).expect("valid").config;
    let region = RegionName::new("eu").expect("valid");
    let listen = "127.0.0.1:7400".parse().expect("valid");
    assert_eq!(config, Config::insecure_dev(1, region, listen, "/d".into()));
    assert_eq!(config.advertise, "127.0.0.1:7400");
    assert_eq!(config.raft.heartbeat_ms, 150);
    assert_eq!(
        (config.raft.election_min_ms, config.raft.election_max_ms),
        (400, 700)
    );
    assert_eq!(
        (config.raft.snapshot_entries, config.raft.kept_entries),
        (5000, 2000)
    );
    assert_eq!(config.shutdown_deadline_ms, 10_000);
    assert_eq!(
        (config.log.level, config.log.format),
        (LogLevel::Info, LogFormat::Text)
    );
    config.validate().expect("valid");
}

#[test]
fn each_layer_wins_over_the_one_below() {
    let file = &format!("{GOOD}raft.heartbeat_ms = 20\n");
    let heartbeat = |environment: &[(&str, &str)], arguments: &[&str]| {
        let loaded = load(file, environment, arguments).expect("valid");
        let settings = loaded.settings.into_iter();
        let set = settings
            .into_iter()
            .find(|set| set.key == "raft.heartbeat_ms");
        let source = set.expect("it has a value").source.to_string();
        (loaded.config.raft.heartbeat_ms, source)
    };
    let variable: &[_] = &[("DOMICILE_RAFT_HEARTBEAT_MS", "30")];
    let flag = &[
        "--set",
        "raft.heartbeat_ms=40",
        "--set",
        "raft.heartbeat_ms=50",
    ];
    assert_eq!(heartbeat(&[], &[]), (20, "node.toml:5:6".to_owned()));
    let name = "environment variable DOMICILE_RAFT_HEARTBEAT_MS".to_owned();
    assert_eq!(heartbeat(variable, &[]), (30, name));
    assert_eq!(
        heartbeat(variable, flag),
        (50, "flag --set raft.heartbeat_ms".to_owned())
    );

    let loaded = load(GOOD, &[], &["--set", "node=2", "--node", "3"]).expect("valid");
    assert_eq!(loaded.config.node, 3, "a flag of its own wins over --set");
}

#[test]
fn a_node_starts_from_flags_or_the_environment_alone() {
    let arguments = ["--node=7", "--region=us", "--data-dir=/d", "--insecure-dev"];
    let loaded = Loaded::from_layers(None, &[], &flags(&arguments)).expect("valid");
    assert_eq!(
        (loaded.config.node, loaded.config.region.as_str()),
        (7, "us")
    );
    let environment = variables(&[
        ("DOMICILE_NODE", "7"),
        ("DOMICILE_REGION", "us"),
        ("DOMICILE_DATA_DIR", "/d"),
        ("DOMICILE_INSECURE_DEV", "true"),
    ]);
    let other = Loaded::from_layers(None, &environment, &Flags::default()).expect("valid");
    assert_eq!(other.config, loaded.config);
}

#[test]
fn every_setting_can_be_set_in_every_layer() {
    for setting in SETTINGS {
        let good = match setting.key {
            "insecure_dev" | "operators" | "tls_dir" => SECURE,
            _ => GOOD,
        };
        let value = match setting.default {
            Fallback::Required(value) | Fallback::Value(value) => value,
            Fallback::Unset(value) | Fallback::Example(value) => value,
            Fallback::Of(_) => settings::Literal::Text("localhost:1"),
        };
        let value = settings::Value::from(value);
        let text = match &value {
            settings::Value::Text(text) => text.clone(),
            other => other.to_string(),
        };
        let line = format!("{} = {value}\n", setting.key);
        let rest: String = good
            .lines()
            .filter(|line| !line.starts_with(&format!("{} =", setting.key)))
            .map(|line| format!("{line}\n"))
            .collect();
        let source = |loaded: Loaded| {
            let found = loaded
                .settings
                .into_iter()
                .find(|set| set.key == setting.key);
            let found = found.expect("it has a value");
            assert_eq!(found.value, value.to_string());
            found.source
        };
        let file = load(&format!("{rest}{line}"), &[], &[]).expect(setting.key);
        assert!(
            matches!(source(file), Source::File { .. }),
            "{}",
            setting.key
        );
        let variable = setting.variable();
        let loaded = load(good, &[(&variable, &text)], &[]).expect(setting.key);
        assert_eq!(source(loaded), Source::Environment(variable));
        let pair = format!("{}={text}", setting.key);
        let loaded = load(good, &[], &["--set", &pair]).expect(setting.key);
        assert_eq!(
            source(loaded),
            Source::Flag(format!("--set {}", setting.key))
        );
    }
}

#[test]
fn every_word_and_every_way_to_write_a_number_is_understood() {
    let levels = [
        ("error", LogLevel::Error),
        ("warn", LogLevel::Warn),
        ("info", LogLevel::Info),
        ("debug", LogLevel::Debug),
        ("trace", LogLevel::Trace),
    ];
    for (word, level) in levels {
        let loaded = load(GOOD, &[("DOMICILE_LOG_LEVEL", word)], &[]).expect(word);
        assert_eq!(loaded.config.log.level, level);
    }
    for (word, format) in [("text", LogFormat::Text), ("json", LogFormat::Json)] {
        let loaded = load(GOOD, &[("DOMICILE_LOG_FORMAT", word)], &[]).expect(word);
        assert_eq!(loaded.config.log.format, format);
    }
    for number in ["1000", "1_000", "0x3e8", "0o1750", "0b1111101000", "+1000"] {
        let file = format!("{GOOD}shutdown_deadline_ms = {number}\n");
        let config = load(&file, &[], &[]).expect(number).config;
        assert_eq!(config.shutdown_deadline_ms, 1000, "{number}");
    }
}

#[test]
fn an_unknown_name_is_refused_with_the_one_that_is_meant() {
    assert_eq!(
        refused("  listn = \"127.0.0.1:1\"\n", &[], &[]),
        "node.toml:5:3: there is no setting `listn`; did you mean `listen`?"
    );
    assert_eq!(
        refused("[raft]\nheartbeat_m = 1\n", &[], &[]),
        "node.toml:6:1: there is no setting `raft.heartbeat_m`; did you mean `raft.heartbeat_ms`?"
    );
    assert_eq!(
        refused("[rft]\nheartbeat_ms = 1\n", &[], &[]),
        "node.toml:5:2: there is no setting `rft`; did you mean `raft`?"
    );
    assert_eq!(
        refused("level = \"info\"\n", &[], &[]),
        "node.toml:5:1: there is no setting `level`; did you mean `log.level`?"
    );
    assert_eq!(
        refused("metrics-listen = \"127.0.0.1:1\"\n", &[], &[]),
        "node.toml:5:1: there is no setting `metrics-listen`; did you mean `metrics_listen`?"
    );
    assert_eq!(
        refused("tls = 1\n", &[], &[]),
        "node.toml:5:1: there is no setting `tls`"
    );
    assert_eq!(
        refused("", &[("DOMICILE_LISTN", "x")], &[]),
        "environment variable DOMICILE_LISTN: there is no such setting; did you mean \
         `DOMICILE_LISTEN`?"
    );
    assert_eq!(
        refused("", &[], &["--set", "raft.heartbeatms=1"]),
        "flag --set raft.heartbeatms: there is no setting `raft.heartbeatms`; did you mean \
         `raft.heartbeat_ms`?"
    );
    assert_eq!(
        refused("", &[], &["--set", "node"]),
        "flag --set: `node` is not KEY=VALUE"
    );
    let unknown = Command::try_parse_from(["domiciled", "--listn", "x"]).err();
    assert!(unknown.expect("unknown").to_string().contains("'--listen'"));
}

#[test]
fn a_wrong_type_is_refused_with_the_place_and_the_right_one() {
    let cases = [
        (
            "[raft]\nheartbeat_ms = \"1s\"\n",
            "node.toml:6:1: `raft.heartbeat_ms`: it must be a whole number of milliseconds from \
             10 to 10000, not a string",
        ),
        (
            "[raft]\nheartbeat_ms = -1\n",
            "node.toml:6:1: `raft.heartbeat_ms`: -1 is not a whole number of milliseconds from \
             10 to 10000",
        ),
        (
            "raft.heartbeat_ms = 10001\n",
            "node.toml:5:6: `raft.heartbeat_ms`: 10001 is not a whole number of milliseconds \
             from 10 to 10000",
        ),
        (
            "listen = 7400\n",
            "node.toml:5:1: `listen`: it must be an IP address and a port, such as \
             127.0.0.1:7400, not a whole number",
        ),
        (
            "raft = 1\n",
            "node.toml:5:1: `raft` is a section: write `[raft]`",
        ),
        (
            "[advertise]\nhost = \"a\"\n",
            "node.toml:5:2: `advertise`: it must be a host and a port, such as localhost:7400, \
             not a section",
        ),
        (
            "[log]\nlevel = \"dbug\"\n",
            "node.toml:6:1: `log.level`: `dbug` is not one of `error`, `warn`, `info`, `debug`, \
             `trace`; did you mean `debug`?",
        ),
    ];
    for (more, message) in cases {
        assert_eq!(refused(more, &[], &[]), message);
    }
    assert_eq!(
        refused("", &[("DOMICILE_NODE", "one")], &["--insecure-dev=yes"]),
        "environment variable DOMICILE_NODE: `one` is not a whole number from 1\n\
         flag --insecure-dev: `yes` is not true or false"
    );
    assert_eq!(
        refused("", &[], &["--node=0", "--region=EU"]),
        "flag --node: 0 is not a whole number from 1\n\
         flag --region: `EU` is not the name of a region, a-z then a-z, 0-9 and - (up to 63)"
    );
    for listen in ["localhost:1", "127.0.0.1", "127.0.0.1:0", ":1", "1", ""] {
        let message = refused("", &[], &["--listen", listen]);
        assert!(message.starts_with("flag --listen: `"), "{message}");
    }
    for advertise in ["a", "a:0", ":1", "a b:1", "-a:1", "a:65536", "::1:1"] {
        let argument = format!("--advertise={advertise}");
        let message = refused("", &[], &[&argument]);
        assert!(message.contains("is not a host and a port"), "{message}");
    }
}

#[test]
fn a_mistake_in_the_grammar_has_its_place() {
    let message = refused("listen = \n", &[], &[]);
    assert!(message.starts_with("node.toml:5:10: "), "{message}");
    let message = refused("node = 2\n", &[], &[]);
    assert_eq!(message, "node.toml:5:1: duplicate key");
    let message = refused("ü = 1\n", &[], &[]);
    assert!(message.starts_with("node.toml:5:1: "), "{message}");
}

#[test]
fn all_mistakes_are_reported_at_once_in_their_order() {
    let message = refused(
        "zeta = 1\nalpha = 1\n[raft]\nheartbeat_ms = true\n",
        &[("DOMICILE_ZETA", "1")],
        &["--node=x"],
    );
    let places: Vec<_> = message
        .lines()
        .map(|line| line.split(": ").next())
        .collect();
    let expected = [
        "node.toml:5:1",
        "node.toml:6:1",
        "node.toml:8:1",
        "environment variable DOMICILE_ZETA",
        "flag --node",
    ];
    assert_eq!(places, expected.map(Some));
}

#[test]
fn what_is_missing_is_named_with_the_ways_to_set_it() {
    let message = load("", &[], &[]).expect_err("empty").message;
    assert_eq!(
        message.lines().nth(2),
        Some(
            "`data_dir` is not set and has no default: set it in the file, as DOMICILE_DATA_DIR, \
             or with --data-dir"
        )
    );
    assert_eq!(message.lines().count(), 3);
}

#[test]
fn a_node_without_tls_is_refused_unless_it_is_meant_and_on_loopback() {
    let message = refused("", &[], &["--insecure-dev=false"]);
    assert!(message.contains("a node needs a certificate"), "{message}");
    let both = refused("", &[], &["--set=tls_dir=/t"]);
    assert!(both.contains("leave one of them away"), "{both}");
    let operators = refused("", &[], &["--set=operators=spiffe://eu.a/svc/ann"]);
    assert!(operators.contains("nobody shows one"), "{operators}");

    for listen in [
        "0.0.0.0:7400",
        "10.0.0.1:7400",
        "[::]:7400",
        "[2001:db8::1]:7400",
    ] {
        let arguments = ["--listen", listen, "--advertise=localhost:7400"];
        let message = refused("", &[], &arguments);
        assert!(message.contains("loopback"), "{message}");
        assert!(message.contains("[`listen`: flag --listen]"), "{message}");
    }
    let message = refused("", &[], &["--metrics-listen=0.0.0.0:1"]);
    assert!(
        message.starts_with("`metrics_listen` is 0.0.0.0:1"),
        "{message}"
    );
    let message = refused("", &[], &["--advertise=db.example:7400"]);
    assert!(
        message.starts_with("`advertise` is db.example:7400"),
        "{message}"
    );
    for listen in ["127.0.0.1:1", "127.9.9.9:1", "[::1]:1"] {
        load(GOOD, &[], &["--listen", listen]).expect("on loopback");
    }
}

const SECURE: &str = "node = 1\nregion = \"eu\"\ndata_dir = \"/d\"\ntls_dir = \"/t\"\n";

#[test]
fn a_node_with_a_certificate_listens_wherever_it_is_told() {
    let arguments = ["--listen=0.0.0.0:7400", "--advertise=db.example:7400"];
    let config = load(SECURE, &[], &arguments).expect("valid").config;
    assert_eq!(config.tls_dir.as_deref(), Some(Path::new("/t")));
    assert!(
        config.operators.is_empty(),
        "nobody unless somebody is named"
    );
    let two = "--set=operators=spiffe://eu.a/svc/ann, spiffe://us.a/svc/bob";
    let config = load(SECURE, &[], &[two]).expect("valid").config;
    let names: Vec<String> = config.operators.iter().map(ToString::to_string).collect();
    assert_eq!(names, ["spiffe://eu.a/svc/ann", "spiffe://us.a/svc/bob"]);
    let refused = |argument| {
        let loaded = load(SECURE, &[], &[argument]);
        loaded.expect_err("it is refused").message
    };
    let wrong = refused("--set=operators=ann");
    assert!(wrong.contains("ids of workloads"), "{wrong}");
    let everybody = refused("--set=operators=");
    assert!(everybody.contains("ids of workloads"), "{everybody}");
    // Scrapes are not encrypted.
    let metrics = refused("--metrics-listen=0.0.0.0:7401");
    assert!(metrics.contains("loopback"), "{metrics}");
    let callers = refused("--set=callers=us=127.0.0.1:1");
    assert!(callers.contains("without TLS"), "{callers}");
}

#[test]
fn settings_that_do_not_fit_together_are_refused() {
    let message = refused("", &[], &["--set=raft.heartbeat_ms=201"]);
    assert!(
        message.starts_with("`raft.election_min_ms` is 400"),
        "{message}"
    );
    assert!(message.ends_with("[`raft.heartbeat_ms`: flag --set raft.heartbeat_ms]"));
    let message = refused("raft.election_max_ms = 400\n", &[], &[]);
    assert!(
        message.ends_with("[`raft.election_max_ms`: node.toml:5:6]"),
        "{message}"
    );
    let message = refused("", &[], &["--metrics-listen=127.0.0.1:7400"]);
    assert!(message.contains("a port of its own"), "{message}");

    let mut config = load(GOOD, &[], &[]).expect("valid").config;
    config.insecure_dev = false;
    config.raft.election_max_ms = 1;
    let message = config.validate().expect_err("two rules").message;
    assert_eq!(message.lines().count(), 2, "{message}");
}

#[test]
fn variables_of_others_are_left_alone() {
    let all = [
        ("DOMICILE_LISTEN", "127.0.0.1:1"),
        ("DOMICILE_ENDPOINTS", "x"),
        ("DOMICILE_CI_CACHE", "x"),
        ("DOMICILE_SERVICE_HOST", "10.0.0.1"),
        ("DOMICILE_SERVICE_PORT_GRPC", "7400"),
        ("DOMICILE_EU_SERVICE_PORT", "7400"),
        ("DOMICILE_PORT", "tcp://10.0.0.1:7400"),
        ("DOMICILE_EU_PORT_7400_TCP_ADDR", "10.0.0.1"),
        ("HOME", "/"),
        ("DOMICILE_PORTT", "1"),
    ];
    let all = all
        .into_iter()
        .map(|(name, text)| (name.into(), text.into()));
    let ours = layers::domicile_variables(all).expect("text");
    let names: Vec<_> = ours.iter().map(|(name, _)| name.as_str()).collect();
    assert_eq!(names, ["DOMICILE_LISTEN", "DOMICILE_PORTT"]);
    for setting in SETTINGS {
        let pair = (setting.variable().into(), "1".into());
        let ours = layers::domicile_variables([pair].into_iter()).expect("text");
        assert_eq!(ours.len(), 1, "{} is ours", setting.key);
    }
}

#[test]
fn a_file_that_cannot_be_read_is_named() {
    let directory = tempfile::tempdir().expect("a directory");
    let path = directory.path().join("node.toml");
    let read = |path: &Path| {
        let flags = Flags {
            config: Some(path.to_owned()),
            ..Flags::default()
        };
        layers::read_file(&flags, &[])
    };
    let error = read(&path).expect_err("missing").to_string();
    assert!(
        error.contains("node.toml cannot be read: No such file"),
        "{error}"
    );
    assert!(read(directory.path()).is_err(), "a directory");
    std::fs::write(&path, b"a = \xff").expect("written");
    let error = read(&path).expect_err("not text").to_string();
    assert!(error.contains("is not UTF-8 text (byte 4)"), "{error}");
    std::fs::write(&path, " ".repeat(2 << 20)).expect("written");
    assert!(
        read(&path)
            .expect_err("too long")
            .message
            .contains("more than")
    );

    std::fs::write(&path, GOOD).expect("written");
    let variable = variables(&[("DOMICILE_CONFIG", &path.display().to_string())]);
    let file = layers::read_file(&Flags::default(), &variable).expect("readable");
    Loaded::from_layers(file, &variable, &Flags::default()).expect("valid");
}

#[test]
fn the_sample_in_deploy_is_the_catalogue() {
    let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../deploy/domiciled.toml");
    if std::env::var_os("REGENERATE").is_some() {
        std::fs::write(path, sample()).expect("written");
    }
    let committed = std::fs::read_to_string(path).expect("the sample exists");
    assert_eq!(
        committed,
        sample(),
        "run this test with REGENERATE=1 and look at the difference"
    );
    load(&committed, &[], &[]).expect("the sample is a valid configuration");
    assert!(
        committed
            .lines()
            .all(|line| line.chars().count() <= 79 && line.is_ascii())
    );
}

#[test]
fn the_sample_with_nothing_commented_out_is_valid_and_changes_nothing() {
    let is_setting = |line: &str| {
        let name = line.split(" = ").next().unwrap_or_default();
        SETTINGS
            .iter()
            .any(|setting: &Setting| setting.section_and_name().1 == name)
    };
    let full: String = sample()
        .lines()
        .map(|line| match line.strip_prefix("# ") {
            Some(rest) if is_setting(rest) => format!("{rest}\n"),
            _ => format!("{line}\n"),
        })
        .collect();
    // Callers of a region have a port of their own without TLS alone.
    let full: String = full
        .lines()
        .filter(|line| !line.starts_with("callers"))
        .map(|line| format!("{line}\n"))
        .collect();
    let full = load(&full, &[], &[]).expect("valid");
    let from_file = |set: &Effective| matches!(set.source, Source::File { .. });
    assert_eq!(
        full.settings.iter().filter(|set| from_file(set)).count(),
        SETTINGS.len() - 1
    );
    let mut config = load(&sample(), &[], &[]).expect("valid").config;
    config.metrics_listen = full.config.metrics_listen;
    config.operators.clone_from(&full.config.operators);
    assert_eq!(full.config, config);
}

#[test]
fn the_effective_configuration_is_a_file_that_says_who_set_what() {
    let arguments = ["--listen", "127.0.0.1:9"];
    let loaded = load(GOOD, &[("DOMICILE_LOG_LEVEL", "warn")], &arguments).expect("valid");
    let shown = loaded.to_string();
    for line in [
        "node = 1                                 # node.toml:1:1",
        "listen = \"127.0.0.1:9\"                   # flag --listen",
        "advertise = \"127.0.0.1:9\"                # default",
        "level = \"warn\"                           # environment variable DOMICILE_LOG_LEVEL",
    ] {
        assert!(shown.lines().any(|shown| shown == line), "{line}\n{shown}");
    }
    assert_eq!(
        load(&shown, &[], &[]).expect("a valid file").config,
        loaded.config
    );
}
