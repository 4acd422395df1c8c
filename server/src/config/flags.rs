//! The flags of `domiciled run`.

use std::path::PathBuf;

/// Flags; each wins over the environment, which wins over the file. They are
/// text here, so that one reader checks every layer alike.
#[derive(Clone, Debug, Default, clap::Args)]
pub struct Flags {
    /// The configuration file [environment: DOMICILE_CONFIG]
    #[arg(long, value_name = "FILE")]
    pub config: Option<PathBuf>,
    /// The number of the node, unique in its region
    #[arg(long, value_name = "NUMBER", allow_hyphen_values = true)]
    pub node: Option<String>,
    /// The region of the node
    #[arg(long, value_name = "NAME")]
    pub region: Option<String>,
    /// Where clients and other nodes reach the node
    #[arg(long, value_name = "IP:PORT")]
    pub listen: Option<String>,
    /// What clients and other nodes are told to use, if not the listen address
    #[arg(long, value_name = "HOST:PORT")]
    pub advertise: Option<String>,
    /// The directory of everything the node stores
    #[arg(long, value_name = "DIRECTORY")]
    pub data_dir: Option<String>,
    /// Serve without TLS, on loopback only, for development
    #[arg(
        long,
        value_name = "true|false",
        num_args = 0..=1,
        require_equals = true,
        default_missing_value = "true"
    )]
    pub insecure_dev: Option<String>,
    /// Where /metrics and /healthz are served
    #[arg(long, value_name = "IP:PORT")]
    pub metrics_listen: Option<String>,
    /// Any setting by its name, such as raft.heartbeat_ms=100; a flag of its
    /// own wins, and of several the last
    #[arg(long, value_name = "KEY=VALUE")]
    pub set: Vec<String>,
}

impl Flags {
    /// The flags that were given and have a setting of their own: the flag's
    /// name, the setting's, the text.
    pub(super) fn named(&self) -> impl Iterator<Item = (&'static str, &'static str, &str)> {
        [
            ("--node", "node", &self.node),
            ("--region", "region", &self.region),
            ("--listen", "listen", &self.listen),
            ("--advertise", "advertise", &self.advertise),
            ("--data-dir", "data_dir", &self.data_dir),
            ("--insecure-dev", "insecure_dev", &self.insecure_dev),
            ("--metrics-listen", "metrics_listen", &self.metrics_listen),
        ]
        .into_iter()
        .filter_map(|(flag, key, text)| Some((flag, key, text.as_deref()?)))
    }
}
