//! The rules of writing, the file format and the exports.

#![allow(
    clippy::unwrap_used,
    reason = "a helper of a test fails as the test does"
)]

mod support;

use domicile_jepsen::history::{
    F, History, Kind, Level, Meta, Note, Process, RegionId, Run, Term, Value, edn,
};
use support::{Shape, Writer, int, list, registers, token, version};

fn complaints(writer: &Writer) -> Vec<String> {
    writer
        .history
        .validate()
        .err()
        .unwrap_or_default()
        .iter()
        .map(ToString::to_string)
        .collect()
}

#[test]
fn good_histories_keep_the_rules() {
    for seed in 0..20 {
        let shape = Shape {
            clients: 6,
            keys: 3,
            operations: 200,
            unknown_percent: 5,
            local_percent: 20,
        };
        registers(seed, &shape).validate().unwrap();
    }
}

#[test]
fn every_rule_is_enforced() {
    let client = Process::Client(0);
    let key = || Some("k".to_owned());

    let mut two_open = Writer::default();
    two_open.invoke(0, F::Read, "k", Value::Null);
    two_open.invoke(0, F::Read, "k", Value::Null);
    assert_eq!(
        complaints(&two_open),
        ["op 1: process 0 already waits for 0"]
    );

    let mut nothing = Writer::default();
    nothing.push(Kind::Ok, client, F::Read, key(), Value::Null);
    assert_eq!(complaints(&nothing), ["op 0: process 0 completes nothing"]);

    let mut other = Writer::default();
    other.invoke(0, F::Read, "k", Value::Null);
    other.push(Kind::Ok, client, F::Write, key(), int(1));
    assert_eq!(
        complaints(&other),
        ["op 1: completes 0 but differs in f or key"]
    );

    let mut undead = Writer::default();
    undead.invoke(0, F::Read, "k", Value::Null);
    undead.complete(0, Kind::Info, None);
    undead.invoke(0, F::Read, "k", Value::Null);
    assert_eq!(complaints(&undead), ["op 2: process 0 acts after an info"]);

    let mut nemesis = Writer::default();
    nemesis.push(
        Kind::Ok,
        Process::Nemesis,
        F::Other("kill".to_owned()),
        None,
        Value::Null,
    );
    assert_eq!(
        complaints(&nemesis),
        ["op 0: a nemesis line is not of type info"]
    );

    let mut order = Writer::default();
    order.run(0, F::Read, "k", Value::Null, Value::Null, Meta::default());
    order.history.ops[1].index = 0;
    assert_eq!(complaints(&order), ["op 0: index does not grow after 0"]);

    let mut time = Writer::default();
    time.run(0, F::Read, "k", Value::Null, Value::Null, Meta::default());
    time.history.ops[0].time_ns = 2_000_000;
    assert_eq!(
        complaints(&time),
        ["op 1: time goes back from 2000000 to 1000000"]
    );
}

#[test]
fn files_round_trip() {
    let shape = Shape {
        clients: 6,
        keys: 3,
        operations: 200,
        unknown_percent: 5,
        local_percent: 20,
    };
    let mut history = registers(1, &shape);
    history.ops[0].meta = Meta {
        region: Some(RegionId::from("eu")),
        term: Some(Term(3)),
        level: Some(Level::AtLeast),
        token: token(2, 9),
        last: true,
        ..version(u64::MAX)
    };
    history.notes.push(Note::Run(Run {
        workload: "register".to_owned(),
        seed: Some(7),
        ..Run::default()
    }));
    history.notes.push(Note::HarnessFailure {
        what: "disk".to_owned(),
    });
    let mut file = Vec::new();
    history.write(&mut file).unwrap();
    assert_eq!(History::read(file.as_slice()).unwrap(), history);
}

#[test]
fn lines_look_as_documented() {
    let mut writer = Writer::default();
    writer.invoke(0, F::Write, "t/k", int(1));
    writer.ok(0, int(1), version(5));
    writer.nemesis("kill", Value::from("n1"));
    let mut file = Vec::new();
    writer.history.write(&mut file).unwrap();
    let lines = [
        r#"{"index":0,"time":0,"type":"invoke","process":0,"f":"write","key":"t/k","value":1}"#,
        r#"{"index":1,"time":1000000,"type":"ok","process":0,"f":"write","key":"t/k","value":1,"meta":{"version":5}}"#,
        r#"{"index":2,"time":2000000,"type":"info","process":"nemesis","f":"kill","value":"n1"}"#,
    ];
    assert_eq!(String::from_utf8(file).unwrap(), lines.join("\n") + "\n");
}

#[test]
fn broken_files_name_their_line() {
    for bad in [
        "{",
        "{\"note\":\"run\",\"seed\":\"x\"}",
        "{\"index\":1}",
        "{\"note\":\"rumour\"}",
    ] {
        let error = History::read(format!("\n{bad}\n").as_bytes()).unwrap_err();
        assert!(error.to_string().contains("line 2"), "{error:#}");
    }
    let float =
        r#"{"index":0,"time":0,"type":"invoke","process":0,"f":"write","key":"k","value":1.5}"#;
    History::read(float.as_bytes()).unwrap_err();
    let stranger = r#"{"index":0,"time":0,"type":"info","process":"ghost","f":"kill"}"#;
    History::read(stranger.as_bytes()).unwrap_err();
}

#[test]
fn edn_is_what_knossos_and_elle_read() {
    let mut writer = Writer::default();
    writer.run(
        0,
        F::Cas,
        "a",
        list(&[1, 2]),
        list(&[1, 2]),
        Meta::default(),
    );
    writer.invoke(1, F::Delete, "b \"q\"", Value::Null);
    writer.complete(1, Kind::Info, None).error = Some("time out: 5".to_owned());
    writer.nemesis("kill", Value::from("n\n1"));
    let read = |seen| {
        Value::List(vec![
            Value::List(vec![Value::from("append"), int(9), int(4)]),
            Value::List(vec![Value::from("r"), int(9), seen]),
        ])
    };
    writer.run(
        2,
        F::Txn,
        "",
        read(Value::Null),
        read(list(&[1, 2, 4])),
        Meta::default(),
    );
    let files = edn::knossos(&writer.history);
    assert_eq!(
        files["a"],
        "{:index 0 :time 0 :type :invoke :process 0 :f :cas :value [1 2] :source-index 0}\n\
         {:index 1 :time 1000000 :type :ok :process 0 :f :cas :value [1 2] :source-index 1}\n"
    );
    assert_eq!(
        files["b \"q\""],
        "{:index 0 :time 2000000 :type :invoke :process 1 :f :write :value nil :source-index 2}\n\
         {:index 1 :time 3000000 :type :info :process 1 :f :write :value nil :source-index 3 :error :time-out--5}\n"
    );
    assert_eq!(
        edn::elle(&writer.history),
        "{:index 0 :time 4000000 :type :info :process :nemesis :f :kill :value \"n\\n1\" :source-index 4}\n\
         {:index 1 :time 5000000 :type :invoke :process 2 :f :txn :value [[:append 9 4] [:r 9 nil]] :source-index 5}\n\
         {:index 2 :time 6000000 :type :ok :process 2 :f :txn :value [[:append 9 4] [:r 9 [1 2 4]]] :source-index 6}\n"
    );
}
