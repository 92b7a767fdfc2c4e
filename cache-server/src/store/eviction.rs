//! What goes when something must: pure. May import `oci`.
//!
//! What was used least recently goes first. A use of a manifest is a use of everything that it points to, so an
//! image whose layers lie on every node already does not lose them here.
//!
//! What was pushed goes by another rule ([`plan_pushed`]): no upstream has it, so no lack of space takes it.

use std::collections::{BTreeSet, HashMap, HashSet};

use crate::oci::Digest;

/// Something that a repository keeps.
#[derive(Clone, Debug)]
pub struct Item {
    /// The repository, as an index.
    pub repository: usize,
    /// Its image, as an index.
    pub image: usize,
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
    /// The manifest that it says something about.
    pub subject: Option<Digest>,
}

/// What a repository may keep.
#[derive(Clone, Copy, Debug, Default)]
pub struct Limits {
    /// At most so many bytes.
    pub max_size: Option<u64>,
    /// Nothing last used before this time (milliseconds since 1970).
    pub used_since: Option<u64>,
    /// Whether it was pushed: then it goes by [`plan_pushed`] alone.
    pub pushed: bool,
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
        if limit.pushed {
            continue;
        }
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

/// The indices of what a hosted repository lets go, in order: manifests that its limits do not let it keep, and links to blobs
/// that none of the remaining manifests of their image points to and that were not used since `grace`. A manifest is not taken
/// away for the size while another one lists it. `items` are those of one repository.
#[must_use]
pub fn plan_pushed(items: &[Item], limits: Limits, grace: u64) -> Vec<usize> {
    let uses = pushed_uses(items);
    let mut staying: BTreeSet<usize> = (0..items.len()).filter(|index| items[*index].manifest).collect();
    let mut going: Vec<usize> =
        staying.iter().copied().filter(|index| limits.used_since.is_some_and(|since| uses[*index] < since)).collect();
    going.sort_by_key(|index| uses[*index]);
    staying.retain(|index| !going.contains(index));
    let sizes: HashMap<&Digest, u64> = items.iter().map(|item| (&item.digest, item.size)).collect();
    // How many of the remaining manifests keep each content of each image, and each content of the repository.
    let mut listed: HashMap<(usize, &Digest), usize> = HashMap::new();
    let mut held: HashMap<&Digest, usize> = HashMap::new();
    for &index in &staying {
        let item = &items[index];
        *held.entry(&item.digest).or_default() += 1;
        for reference in &item.references {
            *listed.entry((item.image, reference)).or_default() += 1;
            *held.entry(reference).or_default() += 1;
        }
    }
    let size_of = |digest: &Digest| sizes.get(digest).copied().unwrap_or_default();
    let mut size: u64 = held.keys().map(|digest| size_of(digest)).sum();
    while limits.max_size.is_some_and(|max| size > max) {
        let unlisted = |index: &usize| {
            let item = &items[*index];
            listed.get(&(item.image, &item.digest)).is_none_or(|count| *count == 0)
        };
        let next = staying.iter().copied().filter(unlisted).min_by_key(|index| uses[*index]);
        // There is always one, as nothing can list itself by its hash.
        let Some(index) = next else { break };
        staying.remove(&index);
        going.push(index);
        let item = &items[index];
        for digest in item.references.iter().chain([&item.digest]) {
            if let Some(count) = held.get_mut(digest) {
                *count -= 1;
                if *count == 0 {
                    size -= size_of(digest);
                }
            }
        }
        for reference in &item.references {
            if let Some(count) = listed.get_mut(&(item.image, reference)) {
                *count -= 1;
            }
        }
    }
    let referenced: HashSet<(usize, &Digest)> =
        listed.iter().filter(|(_, count)| **count > 0).map(|(place, _)| *place).collect();
    let blobs = (0..items.len()).filter(|index| !items[*index].manifest);
    going.extend(blobs.filter(|index| {
        let item = &items[*index];
        item.used < grace && !referenced.contains(&(item.image, &item.digest))
    }));
    going
}

/// The last use of each manifest, of one of its image that leads to it, or of one that it says something about.
fn pushed_uses(items: &[Item]) -> Vec<u64> {
    let mut uses: Vec<u64> = items.iter().map(|item| item.used).collect();
    let mut places: HashMap<(usize, &Digest), usize> = HashMap::new();
    let mut referrers: HashMap<(usize, &Digest), Vec<usize>> = HashMap::new();
    for (index, item) in items.iter().enumerate().filter(|(_, item)| item.manifest) {
        places.insert((item.image, &item.digest), index);
        if let Some(subject) = &item.subject {
            referrers.entry((item.image, subject)).or_default().push(index);
        }
    }
    let mut pending: Vec<usize> = (0..items.len()).filter(|index| items[*index].manifest).collect();
    while let Some(index) = pending.pop() {
        let item = &items[index];
        let children = item.references.iter().filter_map(|digest| places.get(&(item.image, digest)));
        for &follower in children.chain(referrers.get(&(item.image, &item.digest)).into_iter().flatten()) {
            if uses[follower] < uses[index] {
                uses[follower] = uses[index];
                pending.push(follower);
            }
        }
    }
    uses
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
        let references = Vec::new();
        Item {
            repository: 0,
            image: 0,
            manifest: false,
            digest: digest(name),
            size: 10,
            used,
            references,
            subject: None,
        }
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
        let size = Limits { max_size: Some(20), ..Limits::default() };
        assert_eq!(plan(&items, &[size], 0), [0]);
        let age = Limits { used_since: Some(3), ..Limits::default() };
        assert_eq!(plan(&items, &[age], 0), [0, 1]);
    }

    #[test]
    fn manifests_that_point_at_each_other_do_not_hang_it() {
        let items = [manifest("a", 1, &["b"]), manifest("b", 2, &["a"])];
        assert_eq!(plan(&items, &[Limits::default()], 100).len(), 2);
    }

    fn pushed(max_size: Option<u64>, used_since: Option<u64>) -> Limits {
        Limits { max_size, used_since, pushed: true }
    }

    #[test]
    fn no_lack_of_space_takes_what_was_pushed() {
        let mirrored = Item { repository: 1, ..blob("mirrored", 9) };
        let items = [blob("pushed", 1), manifest("image", 1, &["pushed"]), mirrored];
        assert_eq!(plan(&items, &[pushed(Some(0), Some(5)), Limits::default()], 1000), [2]);
    }

    #[test]
    fn a_pushed_blob_stays_while_a_manifest_of_its_image_points_to_it() {
        let elsewhere = Item { image: 1, ..blob("layer", 1) };
        let items = [blob("layer", 1), manifest("image", 1, &["layer"]), blob("young", 9), blob("old", 1), elsewhere];
        assert_eq!(plan_pushed(&items, pushed(None, None), 5), [3, 4]);
    }

    #[test]
    fn unused_manifests_go_with_their_blobs_and_used_ones_keep_what_they_list_and_what_is_said_of_them() {
        let signature = Item { subject: Some(digest("index")), ..manifest("signature", 1, &["proof"]) };
        let items = [
            manifest("index", 9, &["image"]),
            manifest("image", 1, &["layer"]),
            blob("layer", 1),
            signature,
            blob("proof", 1),
            manifest("stale", 2, &["stale layer"]),
            blob("stale layer", 2),
        ];
        assert_eq!(plan_pushed(&items, pushed(None, Some(5)), 5), [5, 6]);
    }

    #[test]
    fn a_pushed_repository_keeps_to_its_size_whole_images_first_and_counts_shared_layers_once() {
        let items = [
            manifest("old index", 1, &["old image"]),
            manifest("old image", 1, &["base", "old layer"]),
            manifest("new image", 9, &["base", "new layer"]),
            blob("base", 9),
            blob("old layer", 1),
            blob("new layer", 9),
        ];
        // 3 manifests and 3 blobs are 33.
        assert!(plan_pushed(&items, pushed(Some(33), None), 5).is_empty());
        assert_eq!(plan_pushed(&items, pushed(Some(32), None), 5), [0]);
        assert_eq!(plan_pushed(&items, pushed(Some(31), None), 5), [0, 1, 4]);
        assert_eq!(plan_pushed(&items, pushed(Some(0), None), 5), [0, 1, 2, 4]);
    }
}
