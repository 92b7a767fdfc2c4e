//! What goes when something must: pure. May import `oci`.
//!
//! What was used least recently goes first. A use of a manifest is a use of everything that it points to, so an
//! image whose layers lie on every node already does not lose them here.

use std::collections::HashMap;

use crate::oci::Digest;

/// Something that a repository keeps.
#[derive(Clone, Debug)]
pub struct Item {
    /// The repository, as an index.
    pub repository: usize,
    /// Whether it is a manifest; else a blob.
    pub manifest: bool,
    /// Its digest.
    pub digest: Digest,
    /// Its size in bytes.
    pub size: u64,
    /// When it was last used, in milliseconds since 1970.
    pub used: u64,
    /// What it points to.
    pub references: Vec<Digest>,
}

/// What a repository may keep.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// At most so many bytes.
    pub max_size: Option<u64>,
    /// Nothing last used before this time (milliseconds since 1970).
    pub used_since: Option<u64>,
}

/// The indices of the items that must go, in order, so that every repository keeps to its limits and at least `free`
/// bytes become free (all items, if there is not as much).
#[must_use]
pub fn plan(items: &[Item], limits: &[Limits], free: u64) -> Vec<usize> {
    let uses = effective_uses(items);
    let mut order: Vec<usize> = (0..items.len()).collect();
    order.sort_by_key(|index| (uses[*index], !items[*index].manifest));
    let mut links: HashMap<&Digest, usize> = HashMap::new();
    let mut sizes = vec![0_u64; limits.len()];
    for item in items {
        *links.entry(&item.digest).or_default() += 1;
        if let Some(size) = sizes.get_mut(item.repository) {
            *size += item.size;
        }
    }
    let mut freed = 0;
    let mut going = Vec::new();
    for index in order {
        let item = &items[index];
        let limit = limits.get(item.repository).copied().unwrap_or_default();
        let size = sizes.get(item.repository).copied().unwrap_or_default();
        let unused = limit.used_since.is_some_and(|since| uses[index] < since);
        let too_large = limit.max_size.is_some_and(|max| size > max);
        if !(unused || too_large || freed < free) {
            continue;
        }
        if let Some(size) = sizes.get_mut(item.repository) {
            *size -= item.size;
        }
        if let Some(count) = links.get_mut(&item.digest) {
            *count -= 1;
            if *count == 0 {
                freed += item.size;
            }
        }
        going.push(index);
    }
    going
}

/// The last use of each item, or of a manifest of the same repository that leads to it.
fn effective_uses(items: &[Item]) -> Vec<u64> {
    let mut uses: Vec<u64> = items.iter().map(|item| item.used).collect();
    let mut places: HashMap<(usize, &Digest), Vec<usize>> = HashMap::new();
    for (index, item) in items.iter().enumerate() {
        places.entry((item.repository, &item.digest)).or_default().push(index);
    }
    let mut pending: Vec<usize> = (0..items.len()).filter(|index| !items[*index].references.is_empty()).collect();
    while let Some(index) = pending.pop() {
        for reference in &items[index].references {
            for &place in places.get(&(items[index].repository, reference)).into_iter().flatten() {
                if uses[place] < uses[index] {
                    uses[place] = uses[index];
                    pending.push(place);
                }
            }
        }
    }
    uses
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::oci::Algorithm;

    fn digest(name: &str) -> Digest {
        Digest::of(Algorithm::Sha256, name.as_bytes())
    }

    fn blob(name: &str, used: u64) -> Item {
        Item { repository: 0, manifest: false, digest: digest(name), size: 10, used, references: Vec::new() }
    }

    fn manifest(name: &str, used: u64, references: &[&str]) -> Item {
        let references = references.iter().map(|name| digest(name)).collect();
        Item { manifest: true, size: 1, references, ..blob(name, used) }
    }

    #[test]
    fn nothing_goes_when_nothing_must() {
        assert!(plan(&[blob("a", 1)], &[Limits::default()], 0).is_empty());
    }

    #[test]
    fn what_was_used_least_recently_goes_first() {
        let items = [blob("new", 9), blob("old", 1), blob("middle", 5)];
        assert_eq!(plan(&items, &[Limits::default()], 11), [1, 2]);
    }

    #[test]
    fn a_manifest_goes_before_its_blobs() {
        let items = [blob("layer", 1), manifest("image", 5, &["layer"])];
        assert_eq!(plan(&items, &[Limits::default()], 11), [1, 0]);
    }

    #[test]
    fn a_use_of_an_index_is_a_use_of_the_layers_below_it() {
        let items =
            [manifest("index", 9, &["image"]), manifest("image", 2, &["layer"]), blob("layer", 2), blob("other", 5)];
        assert_eq!(plan(&items, &[Limits::default()], 1), [3]);
    }

    #[test]
    fn a_blob_that_another_repository_links_frees_nothing() {
        let shared = Item { repository: 1, used: 8, ..blob("shared", 0) };
        let items = [blob("shared", 1), shared, blob("own", 5)];
        assert_eq!(plan(&items, &[Limits::default(); 2], 10), [0, 2]);
    }

    #[test]
    fn a_repository_keeps_to_its_own_size_and_age() {
        let items = [blob("a", 1), blob("b", 2), blob("c", 3)];
        let size = Limits { max_size: Some(20), used_since: None };
        assert_eq!(plan(&items, &[size], 0), [0]);
        let age = Limits { max_size: None, used_since: Some(3) };
        assert_eq!(plan(&items, &[age], 0), [0, 1]);
    }

    #[test]
    fn manifests_that_point_at_each_other_do_not_hang_it() {
        let items = [manifest("a", 1, &["b"]), manifest("b", 2, &["a"])];
        assert_eq!(plan(&items, &[Limits::default()], 100).len(), 2);
    }
}
