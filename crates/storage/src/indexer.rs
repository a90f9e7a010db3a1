//! Choosing nodes that together keep every segment.

use crate::rpc_types::{ShardConfig, ShardedNode};

/// In which order nodes are taken.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Preference {
    /// Nodes that keep the most first: few, well-equipped nodes.
    #[default]
    FewShards,
    /// Nodes that keep the least first: many nodes, each with a small part.
    ManyShards,
    /// Only nodes with this number of shards.
    Exactly(u64),
}

/// Picks nodes in preference order until every segment is kept by `replicas` of them; `None` if that is impossible.
/// A node that adds nothing is left out.
pub fn select_covering(
    nodes: &[ShardedNode],
    replicas: u32,
    preference: Preference,
) -> Option<Vec<ShardedNode>> {
    let mut candidates: Vec<&ShardedNode> =
        nodes.iter().filter(|node| node.config.is_valid()).collect();
    match preference {
        Preference::FewShards => {
            candidates.sort_by_key(|node| (node.config.num_shard, node.config.shard_id))
        }
        Preference::ManyShards => {
            candidates.sort_by_key(|node| {
                (
                    std::cmp::Reverse(node.config.num_shard),
                    node.config.shard_id,
                )
            });
        }
        Preference::Exactly(shards) => {
            candidates.retain(|node| node.config.num_shard == shards);
            candidates.sort_by_key(|node| node.config.shard_id);
        }
    }
    let mut coverage = Coverage::default();
    let mut selected = Vec::new();
    for node in candidates {
        if coverage.replicas() >= replicas {
            break;
        }
        if coverage.add(node.config, replicas) {
            selected.push(node.clone());
        }
    }
    (coverage.replicas() >= replicas).then_some(selected)
}

/// A binary tree over the low bits of segment numbers: the children of a node are the even and the odd segments.
#[derive(Default)]
struct Coverage {
    /// Nodes that keep all segments below this point.
    own: u32,
    children: Option<Box<[Coverage; 2]>>,
}

impl Coverage {
    /// How many times the least-kept segment is kept.
    fn replicas(&self) -> u32 {
        self.own
            + self.children.as_ref().map_or(0, |children| {
                children[0].replicas().min(children[1].replicas())
            })
    }

    /// Adds a node, if some of its segments are kept less than `wanted` times.
    fn add(&mut self, shard: ShardConfig, wanted: u32) -> bool {
        if self.own >= wanted {
            return false;
        }
        if shard.num_shard == 1 {
            if self.replicas() >= wanted {
                return false;
            }
            self.own += 1;
            return true;
        }
        let own = self.own;
        let children = self.children.get_or_insert_default();
        let child = ShardConfig {
            shard_id: shard.shard_id / 2,
            num_shard: shard.num_shard / 2,
        };
        children[(shard.shard_id % 2) as usize].add(child, wanted - own)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn select(
        shards: &[(u64, u64)],
        replicas: u32,
        preference: Preference,
    ) -> Option<Vec<(u64, u64)>> {
        let nodes: Vec<ShardedNode> = shards
            .iter()
            .map(|&(shard_id, num_shard)| ShardedNode {
                url: String::new(),
                config: ShardConfig {
                    shard_id,
                    num_shard,
                },
                latency: 0,
                since: 0,
            })
            .collect();
        let selected = select_covering(&nodes, replicas, preference)?;
        Some(
            selected
                .iter()
                .map(|node| (node.config.shard_id, node.config.num_shard))
                .collect(),
        )
    }

    #[test]
    fn a_selection_covers_everything_and_holds_nothing_useless() {
        let all = [(1, 4), (0, 2), (3, 4), (0, 1), (1, 2)];
        assert_eq!(select(&all, 1, Preference::FewShards).unwrap(), [(0, 1)]);
        assert_eq!(
            select(&all, 2, Preference::FewShards).unwrap(),
            [(0, 1), (0, 2), (1, 2)]
        );
        assert_eq!(
            select(&all, 1, Preference::ManyShards).unwrap(),
            [(1, 4), (3, 4), (0, 2)]
        );
        assert_eq!(
            select(&all, 1, Preference::Exactly(2)).unwrap(),
            [(0, 2), (1, 2)]
        );
        assert_eq!(select(&all, 4, Preference::FewShards), None);
        assert_eq!(select(&[(0, 2), (1, 4)], 1, Preference::FewShards), None);
        assert_eq!(
            select(&[(0, 3), (5, 2)], 1, Preference::FewShards),
            None,
            "nonsense is not counted"
        );
        assert_eq!(select(&[], 1, Preference::FewShards), None);
    }
}
