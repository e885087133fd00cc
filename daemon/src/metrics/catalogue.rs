//! Every metric of every `oast` process: name, type, labels and help in one list.
//!
//! Dashboards, alerts and the reference page are checked against this list, and a golden test
//! prints it, so that a renamed metric is seen in review. To add one: a line here, then a handle
//! from [`super::Metrics`] (CONTRIBUTING.md, "Add a metric").
//!
//! Names are `oast_<area>_<noun>_<unit>[_total]` in base units; the process set keeps the names
//! that Prometheus gives it everywhere. Labels are few and bounded: region, outcome, kind. Never an
//! id of a run, instance or request.

/// What a metric is to Prometheus.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Kind {
    /// Only rises; the name ends in `_total`.
    Counter,
    /// Goes both ways.
    Gauge,
    /// A distribution over fixed bounds.
    Histogram(&'static [f64]),
}

impl Kind {
    /// The word in the `# TYPE` line.
    #[must_use]
    pub fn word(self) -> &'static str {
        match self {
            Kind::Counter => "counter",
            Kind::Gauge => "gauge",
            Kind::Histogram(_) => "histogram",
        }
    }
}

/// One line of the catalogue.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Spec {
    /// The full name as scraped.
    pub name: &'static str,
    /// Its type.
    pub kind: Kind,
    /// Names of its labels, in the order values are given.
    pub labels: &'static [&'static str],
    /// What it tells, for people.
    pub help: &'static str,
}

/// Seconds for things a disk or a call on the local network does.
pub const FAST: &[f64] = &[
    0.0005, 0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0,
];

/// Seconds for things people wait for.
pub const SLOW: &[f64] = &[
    0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0, 30.0, 60.0, 120.0, 300.0, 900.0, 1800.0, 3600.0,
];

macro_rules! catalogue {
    ($( $variant:ident = $kind:expr, $name:literal, [$($label:literal),*], $help:literal; )*) => {
        /// A metric, by what it tells.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
        pub enum Metric {
            $( #[doc = $help] $variant, )*
        }

        impl Metric {
            /// All of them, in the order of the list.
            pub const ALL: &[Metric] = &[$( Metric::$variant, )*];

            /// Its line in the catalogue.
            #[must_use]
            pub const fn spec(self) -> Spec {
                use Kind::{Counter, Gauge, Histogram};
                match self {
                    $( Metric::$variant => Spec {
                        name: $name,
                        kind: $kind,
                        labels: &[$($label),*],
                        help: $help,
                    }, )*
                }
            }
        }
    };
}

catalogue! {
    BuildInfo = Gauge, "oast_build_info", ["version", "role"],
        "Always 1; the labels say which version runs in which role.";
    ProcessStart = Gauge, "process_start_time_seconds", [],
        "Start time of the process since the Unix epoch in seconds.";
    ProcessUptime = Gauge, "oast_process_uptime_seconds", [],
        "Seconds since the process started, by its monotonic clock.";
    ProcessCpu = Counter, "process_cpu_seconds_total", [],
        "Total user and system CPU time spent in seconds.";
    ProcessMemory = Gauge, "process_resident_memory_bytes", [],
        "Resident memory size in bytes.";
    ProcessFds = Gauge, "process_open_fds", [],
        "Number of open file descriptors.";
    ProcessMaxFds = Gauge, "process_max_fds", [],
        "Maximum number of open file descriptors.";
    TasksLive = Gauge, "oast_process_tasks", [],
        "Named tasks that are alive.";
    SeriesDropped = Counter, "oast_metrics_overflow_total", ["metric"],
        "Updates counted under the label value \"other\" because a metric had too many label values.";

    HttpConnections = Gauge, "oast_http_connections", [],
        "Open connections on the process's port.";
    HttpRequests = Counter, "oast_http_requests_total", ["kind", "code"],
        "Requests answered, by kind (grpc, page) and HTTP status class.";
    HttpRequestSeconds = Histogram(FAST), "oast_http_request_duration_seconds", ["kind"],
        "Time from a request's head to its answer's head.";
    HttpAcceptErrors = Counter, "oast_http_accept_errors_total", [],
        "Connections that the kernel could not hand over, for example for lack of file descriptors.";

    TlsCertificateExpiry = Gauge, "oast_tls_certificate_expiry_timestamp_seconds", ["certificate"],
        "End of a certificate since the Unix epoch in seconds (identity, issuer, authority, people).";
    TlsHandshakes = Counter, "oast_tls_handshakes_total", ["kind"],
        "TLS handshakes that this process answered, by kind (full, resumed).";
    TlsHandshakeFailures = Counter, "oast_tls_handshake_failures_total", ["reason"],
        "TLS handshakes that this process answered and that failed, by reason (expired, unknown_authority, other_farm, no_tls, ...).";
    TlsRenewals = Counter, "oast_tls_renewals_total", ["outcome"],
        "Renewals of the process's own certificate by outcome (renewed, failed).";

    RaftTerm = Gauge, "oast_raft_term", [],
        "Current term.";
    RaftIsLeader = Gauge, "oast_raft_is_leader", [],
        "1 on the member that leads, else 0.";
    RaftCommitIndex = Gauge, "oast_raft_commit_index", [],
        "Highest log index known to be committed.";
    RaftAppliedIndex = Gauge, "oast_raft_applied_index", [],
        "Highest log index applied to the ledger.";
    RaftLastIndex = Gauge, "oast_raft_last_index", [],
        "Highest log index in the member's log.";
    RaftLeader = Gauge, "oast_raft_leader", [],
        "Number of the member that leads, 0 when none is known.";
    RaftLeaderChanges = Counter, "oast_raft_leader_changes_total", [],
        "Changes of leader this member has seen.";
    RaftElectionsWon = Counter, "oast_raft_elections_won_total", [],
        "Times that this member became leader.";
    RaftMembers = Gauge, "oast_raft_members", ["role"],
        "Members by role (voter, learner).";
    RaftPeerLag = Gauge, "oast_raft_peer_lag_entries", ["member"],
        "Entries that a member is behind the leader; only on the leader.";
    RaftPeerAnswers = Gauge, "oast_raft_peer_answers", ["member"],
        "1 for a member that was heard from within the last moments, else 0.";
    RaftProposals = Counter, "oast_raft_proposals_total", ["outcome"],
        "Proposals by outcome (committed, refused, overloaded, unknown).";
    RaftEntries = Counter, "oast_raft_entries_total", ["step"],
        "Log entries by what was done with them (proposed, applied).";
    RaftMessages = Counter, "oast_raft_messages_total", ["direction"],
        "Messages among members (sent, received, dropped).";
    RaftRefused = Counter, "oast_raft_batches_refused_total", [],
        "Batches refused because the sender is no member.";
    RaftFsyncSeconds = Histogram(FAST), "oast_raft_fsync_duration_seconds", [],
        "Time to make one batch of log entries durable.";
    RaftApplySeconds = Histogram(FAST), "oast_raft_apply_duration_seconds", [],
        "Time to apply one batch of committed entries.";
    RaftTurnSeconds = Histogram(FAST), "oast_raft_turn_duration_seconds", [],
        "Time of the rounds that were due at once: persist, send, apply.";
    RaftSnapshots = Counter, "oast_raft_snapshots_total", ["direction", "outcome"],
        "Snapshots made and received, by outcome (good, failed, resumed).";
    RaftSnapshotTransfer = Counter, "oast_raft_snapshot_transfer_bytes_total", ["direction"],
        "Bytes of snapshot files sent to and received from members.";
    RaftSnapshotBytes = Gauge, "oast_raft_snapshot_bytes", [],
        "Size of the newest local snapshot file.";
    RaftDigestChecks = Counter, "oast_raft_digest_checks_total", ["result"],
        "Comparisons of the members' states by result (equal, different, undecided).";
    RaftClockSkew = Gauge, "oast_raft_clock_skew_seconds", [],
        "This member's wall clock minus that of most voters.";
    RaftBarred = Gauge, "oast_raft_clock_barred", [],
        "1 on a member that does not lead because its clock is wrong, else 0.";

    DiskFreeBytes = Gauge, "oast_disk_free_bytes", [],
        "Bytes that the member may still write to the file system of its data directory.";
    DiskNoSpace = Gauge, "oast_disk_no_space", [],
        "1 while the member takes no writes because its disk has less room than the reserve, else 0.";

    RunsTotal = Counter, "oast_runs_total", ["outcome"],
        "Finished runs by outcome.";
    QueueDepth = Gauge, "oast_queue_depth", [],
        "Tasks that are ready and wait for a worker.";
    QueueOldestWait = Gauge, "oast_queue_oldest_wait_seconds", [],
        "Wait of the task that has been ready for longest.";
    QueueWaitSeconds = Histogram(SLOW), "oast_queue_wait_seconds", [],
        "Time from ready to leased.";
    LeasesTotal = Counter, "oast_leases_total", ["end"],
        "Leases by how they ended (released, expired).";
    StaleTokens = Counter, "oast_stale_tokens_total", [],
        "Reports refused because their fencing token was not the current one.";
    Workers = Gauge, "oast_workers", ["state"],
        "Workers by state as the leader sees them.";
    WorkerSlots = Gauge, "oast_worker_slots", ["state"],
        "Task slots of this worker by state (busy, free).";

    TaskSeconds = Histogram(SLOW), "oast_task_duration_seconds", ["kind", "outcome"],
        "Duration of one attempt of a task.";
    StepSeconds = Histogram(SLOW), "oast_bake_step_duration_seconds", ["kind"],
        "Duration of a bake step that was really run.";
    StepsTotal = Counter, "oast_bake_steps_total", ["result"],
        "Bake steps by result (executed, cached, failed).";
    PackageBytes = Counter, "oast_bake_package_bytes_total", ["source"],
        "Bytes of packages by where they came from (network, cache).";
    CacheBytes = Gauge, "oast_worker_cache_bytes", ["kind"],
        "Bytes of unpacked layers and of disks that this worker keeps.";
    CacheEvicted = Counter, "oast_worker_cache_evicted_total", ["kind"],
        "Unpacked layers and disks that this worker removed to keep its bound.";
    ChunksTotal = Counter, "oast_artifact_chunks_total", ["result"],
        "Chunks offered to the artifact store by result (written, present).";
    ChunkBytes = Counter, "oast_artifact_written_bytes_total", [],
        "Bytes written to the artifact store.";

    RolloutsTotal = Counter, "oast_rollouts_total", ["outcome"],
        "Finished rollouts by outcome.";
    RolloutSeconds = Histogram(SLOW), "oast_rollout_duration_seconds", ["outcome"],
        "Time from a rollout's begin to its end.";
    RolloutInstances = Gauge, "oast_rollout_instances", ["state"],
        "Instances of all fleets by state.";
    GateEvaluations = Counter, "oast_gate_evaluations_total", ["result"],
        "Gate evaluations by result (open, shut, unknown).";
    WebhooksTotal = Counter, "oast_webhook_deliveries_total", ["result"],
        "Webhook deliveries by result (accepted, duplicate, refused).";

    CloudInstances = Gauge, "oast_localcloud_instances", ["state"],
        "Instances of the local cloud by state.";
    CloudConnections = Counter, "oast_localcloud_connections_total", ["outcome"],
        "Connections through the local load balancer by outcome.";
}
