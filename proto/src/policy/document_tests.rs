//! What is read, what is refused and with which words, and what is canonical.

use super::*;
use crate::address::{RegionName, Tag};

/// A document that uses every field.
const FULL: &str = r#"schema = "domicile.policy/v1"
version = 42
supersedes = "sha256:9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08"
effective_at = "2026-12-01T00:00:00Z"

[regions.eu-central]
jurisdiction = "DE"
within = ["EEA"]

[regions.eu-west]
jurisdiction = "IE"
within = ["EEA"]

[regions.us]
jurisdiction = "US"

[tags.eu-personal]
class = "personal"
home = "eu-central"
store = ["eu-west", "eu-central"]
replicate_to = ["eu-west"]
serve = ["eu-central", "eu-west"]
access_from = ["region:us", "jurisdiction:EEA"]
on_isolation = "stop"
failover = "fenced"
key_names = "segment-prf"
history = "11m"
retention = { min = "30d", max = "6y" }
on_tighten = { purge_within = "72h" }

[[transfers]]
tag = "eu-personal"
from = "eu-central"
to = "us"
mode = "read"
mechanism = "SCC-2021/914-M2"
assessment = "TIA \"2026\"-017 \\ é"
valid = ["2026-12-01", "2027-05-31"]
"#;

/// The least that a policy says.
const LEAST: &str = r#"schema = "domicile.policy/v1"
version = 1
[regions.eu]
jurisdiction = "DE"
within = ["EEA"]
[regions.us]
jurisdiction = "US"
[tags.t]
home = "eu"
store = ["eu", "us"]
"#;

fn parse(source: &str) -> Policy {
    Policy::parse(source).unwrap_or_else(|error| panic!("{error}"))
}

fn tag(name: &str) -> Tag {
    Tag::new(name).unwrap()
}

fn region(name: &str) -> RegionName {
    RegionName::new(name).unwrap()
}

/// What is said about `LEAST` after one replacement.
fn refusal(from: &str, to: &str) -> String {
    assert!(LEAST.contains(from), "{from} is not in the document");
    match Policy::parse(&LEAST.replacen(from, to, 1)) {
        Ok(_) => panic!("`{to}` was accepted"),
        Err(error) => error.to_string(),
    }
}

/// What is said about `FULL` after one replacement.
fn refusal_of_full(from: &str, to: &str) -> String {
    assert!(FULL.contains(from), "{from} is not in the document");
    match Policy::parse(&FULL.replacen(from, to, 1)) {
        Ok(_) => panic!("`{to}` was accepted"),
        Err(error) => error.to_string(),
    }
}

#[test]
fn every_field_is_read() {
    let policy = parse(FULL);
    assert_eq!(policy.version().get(), 42);
    assert_eq!(policy.effective_at(), Some("2026-12-01T00:00:00Z"));
    assert!(
        policy
            .supersedes()
            .unwrap()
            .to_string()
            .starts_with("sha256:9f86d0")
    );
    let rules = policy.tag(&tag("eu-personal")).unwrap();
    assert_eq!(rules.home, region("eu-central"));
    assert_eq!(
        rules.store,
        [region("eu-central"), region("eu-west")].into()
    );
    assert_eq!(rules.replicate_to, [region("eu-west")].into());
    let eea = Access::Jurisdiction("EEA".parse().unwrap());
    assert_eq!(
        rules.access_from,
        [Access::Region(region("us")), eea].into()
    );
    assert_eq!(rules.failover, Failover::Fenced);
    assert_eq!(rules.key_names, KeyNames::SegmentPrf);
    assert_eq!(
        rules.retention.unwrap().max,
        Some(Span::from_seconds(6 * 365 * 86_400))
    );
    assert_eq!(rules.purge_within, Some(Span::from_seconds(72 * 3600)));
    let [transfer] = policy.transfers() else {
        panic!("one transfer")
    };
    assert_eq!(
        (transfer.mode, transfer.valid_until.to_string().as_str()),
        (Mode::Read, "2027-05-31")
    );
}

#[test]
fn defaults_are_the_documented_ones() {
    let policy = parse(LEAST);
    let rules = policy.tag(&tag("t")).unwrap();
    assert_eq!(rules.class, Class::Personal);
    assert_eq!(rules.serve, rules.store);
    let of_serve = [Access::Region(region("eu")), Access::Region(region("us"))];
    assert_eq!(rules.access_from, of_serve.into());
    assert!(rules.replicate_to.is_empty());
    assert_eq!(rules.failover, Failover::Sovereign);
    assert_eq!(rules.key_names, KeyNames::Plain);
    assert_eq!(rules.history.seconds, 600);
    for (class, isolation) in [
        ("personal", Isolation::Stop),
        ("special", Isolation::Stop),
        ("account", Isolation::Serve),
        ("derived", Isolation::Serve),
        ("public", Isolation::Serve),
    ] {
        let policy = parse(&format!("{LEAST}class = \"{class}\"\n"));
        assert_eq!(
            policy.tag(&tag("t")).unwrap().on_isolation,
            isolation,
            "{class}"
        );
    }
    // Callers follow `serve`, not `store`.
    let policy = parse(&format!("{LEAST}serve = [\"eu\"]\n"));
    assert_eq!(
        policy.tag(&tag("t")).unwrap().access_from,
        [Access::Region(region("eu"))].into()
    );
}

#[test]
fn the_policies_that_are_shipped_can_be_enforced() {
    for source in [DEMO, SINGLE_REGION] {
        let policy = parse(source);
        assert_eq!(policy.unenforced(), []);
        assert_eq!(policy.version().get(), 1);
    }
    let names = |policy: &Policy| policy.tags().keys().map(Tag::to_string).collect::<Vec<_>>();
    assert_eq!(
        names(&parse(DEMO)),
        ["eu-only", "eu-shared", "global", "us-only"]
    );
    assert_eq!(
        names(&parse(SINGLE_REGION)),
        ["eu-only", "orders", "sessions"]
    );
    assert_eq!(parse(SINGLE_REGION).regions().len(), 1);
}

#[test]
fn what_is_misspelt_is_named_with_its_place_and_what_was_meant() {
    assert_eq!(
        refusal("home = \"eu\"", "hmoe = \"eu\""),
        "line 8, column 7: tag `t` needs the field `home`\n\
         line 9, column 1: tag `t` has no field `hmoe`; did you mean `home`?"
    );
    assert_eq!(
        refusal("[\"eu\", \"us\"]", "[\"eu\", \"eus\"]"),
        "line 10, column 16: there is no region `eus`; did you mean `eu`?"
    );
    assert_eq!(
        refusal("version = 1", "version = 1\nregoins = 3"),
        "line 3, column 1: the policy has no field `regoins`; did you mean `regions`?"
    );
    assert_eq!(
        refusal("home = \"eu\"", "home = \"eu\"\nclass = \"specail\""),
        "line 10, column 9: `specail` is none of: personal, special, account, derived, public; \
         did you mean `special`?"
    );
    assert_eq!(
        refusal(
            "home = \"eu\"",
            "home = \"eu\"\naccess_from = [\"jurisdiction:EAE\"]"
        ),
        "line 10, column 16: no region is in or within the jurisdiction `EAE`; did you mean `EEA`?"
    );
    // Nothing near: no suggestion. Columns count characters.
    assert_eq!(
        refusal("home = \"eu\"", "\"é\" = 1\nhome = \"eu\""),
        "line 9, column 1: tag `t` has no field `é`"
    );
    assert_eq!(
        refusal(
            "home = \"eu\"",
            "home = \"eu\"\nretention = { \"ö\" = 1, min = \"1x\" }"
        ),
        "line 10, column 15: `retention` has no field `ö`\n\
         line 10, column 30: a length of time is a number and s, m, h, d or y, such as `72h`"
    );
}

#[test]
fn all_problems_are_told_at_once() {
    let source = LEAST
        .replace("version = 1", "version = 0")
        .replace("\"DE\"", "\"de\"");
    let error = Policy::parse(&source).expect_err("two mistakes");
    let lines: Vec<_> = error.problems.iter().map(|problem| problem.line).collect();
    assert_eq!(lines, [2, 4]);
}

#[test]
fn what_is_not_toml_is_refused_with_its_place() {
    assert!(refusal("version = 1", "version =").starts_with("line 2, column 10: "));
    assert!(refusal("version = 1", "version = 1\nversion = 1").starts_with("line 3, column 1: "));
    assert!(
        Policy::parse("")
            .unwrap_err()
            .to_string()
            .contains("needs the field `schema`")
    );
    let long = " ".repeat(crate::limits::POLICY_BYTES_MAX + 1);
    assert!(
        Policy::parse(&long)
            .unwrap_err()
            .to_string()
            .contains("at most")
    );
}

#[test]
fn fields_that_contradict_each_other_are_refused() {
    let with = |line: &str| refusal("home = \"eu\"", &format!("home = \"eu\"\n{line}"));
    let cases = [
        (
            refusal("home = \"eu\"", "home = \"ap\""),
            "there is no region `ap`",
        ),
        (
            refusal("store = [\"eu\", \"us\"]", "store = [\"us\"]"),
            "home `eu` must be in `store`",
        ),
        (
            refusal("store = [\"eu\", \"us\"]", "store = []"),
            "must not be empty",
        ),
        (
            refusal("store = [\"eu\", \"us\"]", "store = [\"eu\", \"eu\"]"),
            "twice",
        ),
        (
            refusal("store = [\"eu\", \"us\"]", "store = \"eu\""),
            "a list of strings, not: string",
        ),
        (with("serve = [\"us\"]"), "must be in `serve`"),
        (
            with("serve = [\"eu\", \"mars\"]"),
            "there is no region `mars`",
        ),
        (with("replicate_to = [\"eu\"]"), "no mirror of itself"),
        (with("replicate_to = [\"ap\"]"), "there is no region `ap`"),
        (with("access_from = []"), "must not be empty"),
        (
            with("access_from = [\"eu\"]"),
            "`region:NAME` or `jurisdiction:CODE`",
        ),
        (
            with("access_from = [\"EEA\"]"),
            "`region:NAME` or `jurisdiction:CODE`",
        ),
        (
            with("access_from = [\"region:ap\"]"),
            "there is no region `ap`",
        ),
        (
            with("access_from = [\"jurisdiction:FR\"]"),
            "jurisdiction `FR`",
        ),
        (with("retention = {}"), "needs `min` or `max`"),
        (
            with("retention = { min = \"2d\", max = \"1d\" }"),
            "must not be longer",
        ),
        (with("on_tighten = {}"), "needs the field `purge_within`"),
        (with("history = 10"), "a string, not: integer"),
        (
            refusal("\"domicile.policy/v1\"", "\"domicile.policy/v2\""),
            "schema",
        ),
        (refusal("version = 1", "version = -1"), "count from 1"),
        (refusal("version = 1", "version = \"1\""), "a whole number"),
        (refusal("version = 1", "version = 2"), "needs `supersedes`"),
        (refusal("[tags.t]", "[tags.T]"), "not allowed"),
        (
            refusal(
                "[regions.us]",
                "[regions.us-]\njurisdiction = \"US\"\n[regions.1us]",
            ),
            "byte 0",
        ),
        (
            refusal("jurisdiction = \"US\"", "jurisdiction = \"DE\""),
            "differ in `within`",
        ),
        (
            refusal("jurisdiction = \"US\"", ""),
            "needs the field `jurisdiction`",
        ),
        (
            refusal_of_full("to = \"us\"", "to = \"eu-central\""),
            "the same region",
        ),
        (
            refusal_of_full("from = \"eu-central\"", "from = \"us\""),
            "does not hold",
        ),
        (
            refusal_of_full("tag = \"eu-personal\"", "tag = \"eu-persona\""),
            "mean `eu-personal`",
        ),
        (
            refusal_of_full("2027-05-31", "2026-11-30"),
            "before the first",
        ),
        (
            refusal_of_full("2027-05-31", "2027-02-30"),
            "a day that exists",
        ),
        (refusal_of_full(", \"2027-05-31\"", ""), "two dates"),
        (
            refusal_of_full("mode = \"read\"\n", ""),
            "needs the field `mode`",
        ),
        (
            refusal_of_full("mode = \"read\"", "mode = \"write\""),
            "none of: read, copy",
        ),
        (
            refusal_of_full("version = 42", "version = 1"),
            "leave `supersedes` away",
        ),
        (refusal_of_full("sha256:9f", "sha256:9F"), "lower-case"),
        (
            refusal_of_full("[\"eu-west\", \"eu-central\"]", "[\"eu-central\"]"),
            "mirror `eu-west`",
        ),
    ];
    for (said, wanted) in cases {
        assert!(said.contains(wanted), "`{wanted}` is not in: {said}");
    }
}

#[test]
fn what_is_not_enforced_is_named_with_its_line() {
    let policy = parse(FULL);
    let found: Vec<_> = policy
        .unenforced()
        .iter()
        .map(|found| (found.line, found.field.as_str()))
        .collect();
    assert_eq!(
        found,
        [
            (4, "effective_at"),
            (25, "tags.eu-personal.failover"),
            (26, "tags.eu-personal.key_names"),
            (27, "tags.eu-personal.history"),
            (28, "tags.eu-personal.retention"),
            (29, "tags.eu-personal.on_tighten"),
            // Array of tables: the first head.
            (31, "transfers"),
        ]
    );
    // What asks for nothing new is no reason to refuse.
    let harmless =
        "replicate_to = []\nhistory = \"10m\"\nfailover = \"sovereign\"\nkey_names = \"plain\"\n";
    assert_eq!(parse(&format!("{LEAST}{harmless}")).unenforced(), []);
}

/// Guards the list against a field that was renamed, which would turn a refusal
/// into silence.
#[test]
fn every_rule_of_the_list_names_a_field_that_is_read() {
    let full = parse(FULL);
    for rule in UNENFORCED {
        let last = rule.field.rsplit('.').next().unwrap();
        let hit = full
            .unenforced()
            .iter()
            .any(|found| found.field.rsplit('.').next() == Some(last));
        assert!(hit, "{} is never found", rule.field);
    }
}

#[test]
fn the_canonical_text_is_the_one_written_down() {
    let wanted = r#"schema = "domicile.policy/v1"
version = 1

[regions.eu]
jurisdiction = "DE"
within = ["EEA"]

[regions.us]
jurisdiction = "US"
within = []

[tags.t]
class = "personal"
home = "eu"
store = ["eu", "us"]
replicate_to = []
serve = ["eu", "us"]
access_from = ["region:eu", "region:us"]
on_isolation = "stop"
failover = "sovereign"
key_names = "plain"
history = "600s"
"#;
    let policy = parse(LEAST);
    assert_eq!(policy.canonical(), wanted);
    // `sha256sum` of the text above: signatures are over it, so it must not
    // drift.
    assert_eq!(
        policy.digest().to_string(),
        include_str!("digest_golden.txt").trim()
    );
}

#[test]
fn the_canonical_text_reads_back_as_itself() {
    for source in [FULL, LEAST, DEMO, SINGLE_REGION] {
        let policy = parse(source);
        let again = parse(&policy.canonical());
        assert_eq!(again.canonical(), policy.canonical());
        assert_eq!(again, policy);
        assert_eq!(again.unenforced().len(), policy.unenforced().len());
        let digest = policy.digest();
        assert_eq!(digest.to_string().parse(), Ok(digest));
    }
}

#[test]
fn order_comments_and_spelling_do_not_change_the_digest_but_meaning_does() {
    let digest = |source: &str| parse(source).digest();
    let same = LEAST
        .replace("[\"eu\", \"us\"]", "[ 'us', # comment\n 'eu' ]")
        .replace("version = 1", "version = 0x1");
    assert_eq!(digest(&same), digest(LEAST));
    assert_eq!(
        digest(&format!("{LEAST}history = \"600s\"\n")),
        digest(LEAST)
    );
    assert_eq!(
        digest(&format!("{LEAST}serve = [\"us\", \"eu\"]\n")),
        digest(LEAST)
    );
    for line in [
        "class = \"special\"",
        "serve = [\"eu\"]",
        "access_from = [\"region:eu\"]",
        "on_isolation = \"serve\"",
        "failover = \"fenced\"",
        "key_names = \"segment-prf\"",
        "history = \"11m\"",
        "replicate_to = [\"us\"]",
        "retention = { min = \"1d\" }",
        "on_tighten = { purge_within = \"1d\" }",
    ] {
        assert_ne!(digest(&format!("{LEAST}{line}\n")), digest(LEAST), "{line}");
    }
    let second = LEAST.replace("store = [\"eu\", \"us\"]", "store = [\"eu\"]");
    assert_ne!(digest(&second), digest(LEAST));
    assert_ne!(
        digest(&FULL.replace("mode = \"read\"", "mode = \"copy\"")),
        digest(FULL)
    );
}
