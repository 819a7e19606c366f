//! Changes: each in one transaction, fenced by the version that the caller saw.

use std::collections::{HashMap, HashSet};

use super::Imported;
use super::find::words_of;
use super::read;
use crate::catalog::CatalogError;
use crate::catalog::model::{NewProduct, Product, ProductPatch};
use crate::clock::UnixMillis;
use crate::database::{Dialect, Session, Sql, Value, end, insert, list};

/// What a product becomes, with version, time of creation and time of change.
struct Put<'a> {
    new: &'a NewProduct,
    version: u64,
    created_at: UnixMillis,
    updated_at: UnixMillis,
}

/// Later than the one before, and than that of a product of this id that was deleted: versions are times, unless changes
/// come faster than a millisecond apart.
fn next_version(before: Option<u64>, now: UnixMillis) -> u64 {
    u64::try_from(now).unwrap_or(0).max(before.map_or(1, |before| before + 1))
}

pub(super) async fn create<S: Session>(s: &mut S, new: &NewProduct, now: UnixMillis) -> Result<Product, CatalogError> {
    s.begin().await?;
    let done = create_in(s, new, now).await;
    end(s, done).await
}

async fn create_in<S: Session>(s: &mut S, new: &NewProduct, now: UnixMillis) -> Result<Product, CatalogError> {
    if version(s, &new.id).await?.is_some() {
        return Err(CatalogError::Exists);
    }
    let created_at = new.created_at.unwrap_or(now);
    put(s, &[Put { new, version: next_version(None, now), created_at, updated_at: now }], false).await?;
    written(s, &new.id).await
}

pub(super) async fn replace<S: Session>(
    s: &mut S,
    new: &NewProduct,
    expected: Option<u64>,
    now: UnixMillis,
) -> Result<Product, CatalogError> {
    s.begin().await?;
    let done = change_in(s, &new.id, expected, now, |old| *old = new.clone()).await;
    end(s, done).await
}

pub(super) async fn patch<S: Session>(
    s: &mut S,
    id: &str,
    patch: &ProductPatch,
    expected: Option<u64>,
    now: UnixMillis,
) -> Result<Product, CatalogError> {
    s.begin().await?;
    let done = change_in(s, id, expected, now, |old| patch.clone().apply(old)).await;
    end(s, done).await
}

async fn change_in<S: Session>(
    s: &mut S,
    id: &str,
    expected: Option<u64>,
    now: UnixMillis,
    change: impl FnOnce(&mut NewProduct) + Send,
) -> Result<Product, CatalogError> {
    let before = fenced(s, id, expected).await?;
    let (mut new, _) = read::given(s, &[id.to_owned()]).await?.remove(id).ok_or(CatalogError::NotFound)?;
    let first = new.created_at.unwrap_or(now);
    change(&mut new);
    let created_at = new.created_at.unwrap_or(first);
    put(s, &[Put { new: &new, version: next_version(Some(before), now), created_at, updated_at: now }], true).await?;
    written(s, id).await
}

pub(super) async fn delete<S: Session>(s: &mut S, id: &str, expected: Option<u64>) -> Result<(), CatalogError> {
    s.begin().await?;
    let done = delete_in(s, id, expected).await;
    end(s, done).await
}

async fn delete_in<S: Session>(s: &mut S, id: &str, expected: Option<u64>) -> Result<(), CatalogError> {
    fenced(s, id, expected).await?;
    // What belongs to it goes with it.
    s.rows("DELETE FROM products WHERE id = ?", vec![Value::text(id)]).await?;
    Ok(())
}

/// Creates and replaces; what is the same already is left alone.
pub(super) async fn import<S: Session>(
    s: &mut S,
    batch: &[NewProduct],
    now: UnixMillis,
) -> Result<Imported, CatalogError> {
    s.begin().await?;
    let done = import_in(s, batch, now).await;
    end(s, done).await
}

async fn import_in<S: Session>(s: &mut S, batch: &[NewProduct], now: UnixMillis) -> Result<Imported, CatalogError> {
    // Of two with one id, the later counts.
    let mut last: HashMap<&str, usize> = HashMap::new();
    for (at, new) in batch.iter().enumerate() {
        last.insert(&new.id, at);
    }
    let mut batch: Vec<&NewProduct> = batch
        .iter()
        .enumerate()
        .filter(|(at, new)| last.get(new.id.as_str()) == Some(at))
        .map(|(_, new)| new)
        .collect();
    // Everybody locks in the same order.
    batch.sort_by(|a, b| a.id.cmp(&b.id));
    let mut imported = Imported::default();
    for batch in batch.chunks(read::AT_ONCE) {
        let ids: Vec<String> = batch.iter().map(|new| new.id.clone()).collect();
        lock(s, &ids).await?;
        let there = read::given(s, &ids).await?;
        let mut puts = Vec::new();
        for new in batch {
            let before = there.get(&new.id);
            let created_at = new.created_at.or(before.and_then(|(old, _)| old.created_at)).unwrap_or(now);
            if before.is_some_and(|(old, _)| same(old, new, created_at)) {
                imported.unchanged += 1;
                continue;
            }
            match before {
                Some(_) => imported.updated += 1,
                None => imported.created += 1,
            }
            let version = next_version(before.map(|(_, version)| *version), now);
            puts.push(Put { new, version, created_at, updated_at: now });
        }
        put(s, &puts, true).await?;
    }
    Ok(imported)
}

fn same(old: &NewProduct, new: &NewProduct, created_at: UnixMillis) -> bool {
    let mut new = new.clone();
    new.created_at = Some(created_at);
    *old == new
}

/// The version of a product, which nobody else changes until our transaction ends.
async fn version<S: Session>(s: &mut S, id: &str) -> Result<Option<u64>, CatalogError> {
    let text = match S::DIALECT {
        // Its transactions write one after the other anyway.
        Dialect::Sqlite => "SELECT version FROM products WHERE id = ?",
        Dialect::Postgres | Dialect::MySql => "SELECT version FROM products WHERE id = ? FOR UPDATE",
    };
    Ok(s.rows(text, vec![Value::text(id)]).await?.first_mut().map(|row| row.whole(0)).transpose()?)
}

async fn fenced<S: Session>(s: &mut S, id: &str, expected: Option<u64>) -> Result<u64, CatalogError> {
    let current = version(s, id).await?.ok_or(CatalogError::NotFound)?;
    match expected {
        Some(expected) if expected != current => Err(CatalogError::Conflict { current }),
        _ => Ok(current),
    }
}

async fn lock<S: Session>(s: &mut S, ids: &[String]) -> Result<(), CatalogError> {
    if S::DIALECT == Dialect::Sqlite {
        return Ok(());
    }
    let (marks, values) = list(ids);
    s.rows(&format!("SELECT id FROM products WHERE id IN ({marks}) ORDER BY id FOR UPDATE"), values).await?;
    Ok(())
}

async fn written<S: Session>(s: &mut S, id: &str) -> Result<Product, CatalogError> {
    read::products(s, &[id.to_owned()]).await?.pop().ok_or(CatalogError::NotFound)
}

/// Writes products as they are given, with all that belongs to them. `over` says that some may be there.
async fn put<S: Session>(s: &mut S, puts: &[Put<'_>], over: bool) -> Result<(), CatalogError> {
    if puts.is_empty() {
        return Ok(());
    }
    let categories = named(s, "categories", puts.iter().filter_map(|put| put.new.category.as_deref())).await?;
    let brands = named(s, "brands", puts.iter().filter_map(|put| put.new.brand.as_deref())).await?;
    let number = |ids: &HashMap<String, i64>, name: &Option<String>| {
        name.as_ref().and_then(|name| ids.get(name)).map_or(Value::Null, |id| Value::Int(*id))
    };
    let (mut rows, mut images, mut attributes, mut related) = (vec![], vec![], vec![], vec![]);
    for Put { new, version, created_at, updated_at } in puts {
        let (name_words, search_words) = words_of(new);
        let name_key: String = new.name.to_lowercase().chars().take(200).collect();
        rows.push(vec![
            Value::text(&new.id),
            Value::text(&new.name),
            Value::text(name_key),
            Value::text(&new.description),
            number(&categories, &new.category),
            number(&brands, &new.brand),
            Value::Decimal(new.price),
            Value::text(&new.currency),
            Value::whole(u64::from(new.stock)),
            Value::text(new.status.as_str()),
            Value::whole(*version),
            Value::Int(*created_at),
            Value::Int(*updated_at),
            Value::text(name_words),
            Value::text(search_words),
        ]);
        let of = |at: usize, values: &[&str]| {
            let mut row = vec![Value::text(&new.id), Value::whole(at as u64)];
            row.extend(values.iter().map(|value| Value::text(*value)));
            row
        };
        images.extend(new.images.iter().enumerate().map(|(at, image)| of(at, &[&image.url, &image.alt])));
        attributes.extend(new.attributes.iter().enumerate().map(|(at, a)| of(at, &[&a.name, &a.value])));
        related.extend(new.related.iter().enumerate().map(|(at, id)| of(at, &[id])));
    }
    const COLUMNS: [&str; 15] = [
        "id",
        "name",
        "name_key",
        "description",
        "category_id",
        "brand_id",
        "price",
        "currency",
        "stock",
        "status",
        "version",
        "created_at",
        "updated_at",
        "name_words",
        "search_words",
    ];
    let behind = match S::DIALECT {
        _ if !over => String::new(),
        Dialect::Sqlite | Dialect::Postgres => {
            let sets: Vec<String> = COLUMNS[1..].iter().map(|column| format!("{column} = excluded.{column}")).collect();
            format!(" ON CONFLICT (id) DO UPDATE SET {}", sets.join(", "))
        }
        Dialect::MySql => {
            let sets: Vec<String> = COLUMNS[1..].iter().map(|column| format!("{column} = VALUES({column})")).collect();
            format!(" ON DUPLICATE KEY UPDATE {}", sets.join(", "))
        }
    };
    insert(s, &format!("products ({})", COLUMNS.join(", ")), COLUMNS.len(), rows, &behind).await?;
    if over {
        let ids: Vec<&str> = puts.iter().map(|put| put.new.id.as_str()).collect();
        for table in ["product_images", "product_attributes", "related_products"] {
            let (marks, values) = list(&ids);
            let mut sql = Sql::new(&format!("DELETE FROM {table} WHERE product_id IN ("));
            sql.add(&format!("{marks})"), values);
            sql.run(s).await?;
        }
    }
    insert(s, "product_images (product_id, position, url, alt)", 4, images, "").await?;
    insert(s, "product_attributes (product_id, position, name, value)", 4, attributes, "").await?;
    Ok(insert(s, "related_products (product_id, position, related_id)", 3, related, "").await?)
}

/// The numbers of names, made where they are new.
async fn named<S: Session>(
    s: &mut S,
    table: &str,
    names: impl Iterator<Item = &str>,
) -> Result<HashMap<String, i64>, CatalogError> {
    let mut names: Vec<&str> = names.collect::<HashSet<_>>().into_iter().collect();
    names.sort_unstable();
    let mut found = HashMap::new();
    look(s, table, &names, &mut found).await?;
    let new: Vec<&str> = names.into_iter().filter(|name| !found.contains_key(*name)).collect();
    if new.is_empty() {
        return Ok(found);
    }
    let rows = new.iter().map(|name| vec![Value::text(*name)]).collect();
    // Another may make the same at this moment.
    let behind = match S::DIALECT {
        Dialect::MySql => " ON DUPLICATE KEY UPDATE name = VALUES(name)",
        Dialect::Sqlite | Dialect::Postgres => " ON CONFLICT (name) DO NOTHING",
    };
    insert(s, &format!("{table} (name)"), 1, rows, behind).await?;
    look(s, table, &new, &mut found).await?;
    Ok(found)
}

async fn look<S: Session>(
    s: &mut S,
    table: &str,
    names: &[&str],
    found: &mut HashMap<String, i64>,
) -> Result<(), CatalogError> {
    for names in names.chunks(read::AT_ONCE) {
        let (marks, values) = list(names);
        for mut row in s.rows(&format!("SELECT name, id FROM {table} WHERE name IN ({marks})"), values).await? {
            found.insert(row.text(0)?, row.int(1)?);
        }
    }
    Ok(())
}
