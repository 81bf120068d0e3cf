//! The names of the attention projections that share one input: query, key and value, by architecture.
//!
//! Any set can be counted as one tie group, which is what an audit prices. A fit makes joint groups of
//! those alone that are marked for it.

/// The last names of the query, key and value modules of one family of architectures.
#[derive(Debug, Clone, Copy)]
pub(crate) struct JointSet {
    /// Query, key, value: the order of B's rows.
    pub(crate) names: [&'static str; 3],
    /// Whether a fit that is asked for joint groups makes one of these.
    #[allow(dead_code)]
    pub(crate) fitted: bool,
}

/// Every set that is known.
pub(crate) const JOINT_SETS: [JointSet; 5] = [
    JointSet {
        names: ["q_proj", "k_proj", "v_proj"],
        fitted: true,
    },
    JointSet {
        names: ["query", "key", "value"],
        fitted: true,
    },
    JointSet {
        names: ["query_proj", "key_proj", "value_proj"],
        fitted: false,
    },
    JointSet {
        names: ["q", "k", "v"],
        fitted: true,
    },
    JointSet {
        names: ["q_lin", "k_lin", "v_lin"],
        fitted: false,
    },
];

/// The set that a module's last name is in, and its place there: 0 query, 1 key, 2 value.
pub(crate) fn find(name: &str) -> Option<(usize, usize)> {
    JOINT_SETS.iter().enumerate().find_map(|(set, joint)| {
        let place = joint.names.iter().position(|n| *n == name)?;
        Some((set, place))
    })
}
