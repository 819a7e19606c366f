//! Products by their ids, whole: four statements for up to 200 of them.

use std::collections::HashMap;

use crate::catalog::model::{Attribute, Image, Product, Status, Summary, is_product_id, shown};
use crate::catalog::{CatalogError, NewProduct};
use crate::database::{Row, Session, Sql, Value, list};

/// Ids of one statement.
pub(super) const AT_ONCE: usize = 200;

/// Columns of a [`Summary`], from `products p`.
pub(super) const SUMMARY: &str =
    "p.id, p.name, c.name AS category, b.name AS brand, p.price, p.currency, p.stock, i.url, i.alt";
/// Tables of a [`Summary`].
pub(super) const SUMMARY_FROM: &str = "LEFT JOIN categories c ON c.id = p.category_id \
    LEFT JOIN brands b ON b.id = p.brand_id \
    LEFT JOIN product_images i ON i.product_id = p.id AND i.position = 0";

/// A [`Summary`] from column `at` on.
pub(super) fn summary(row: &mut Row, at: usize) -> Result<Summary, CatalogError> {
    let (url, alt) = (row.optional(at + 7)?, row.optional(at + 8)?);
    Ok(Summary {
        id: row.text(at)?,
        name: row.text(at + 1)?,
        category: row.optional(at + 2)?,
        brand: row.optional(at + 3)?,
        price: shown(row.decimal(at + 4)?),
        currency: row.text(at + 5)?,
        stock: stock(row.int(at + 6)?)?,
        image: url.zip(alt).map(|(url, alt)| Image { url, alt }),
    })
}

fn stock(n: i64) -> Result<u32, CatalogError> {
    u32::try_from(n).map_err(|_| CatalogError::Corrupt("a stock is out of range"))
}

/// Products in the order of `ids`, each once; those that are not there are left out.
pub(super) async fn products<S: Session>(s: &mut S, ids: &[String]) -> Result<Vec<Product>, CatalogError> {
    let mut found = HashMap::new();
    let known: Vec<&String> = ids.iter().filter(|id| is_product_id(id)).collect();
    for ids in known.chunks(AT_ONCE) {
        some(s, ids, &mut found).await?;
    }
    Ok(ids.iter().filter_map(|id| found.remove(id)).collect())
}

async fn some<S: Session>(
    s: &mut S,
    ids: &[&String],
    found: &mut HashMap<String, Product>,
) -> Result<(), CatalogError> {
    let (marks, values) = list(ids);
    let text = format!(
        "SELECT p.id, p.name, p.description, c.name AS category, b.name AS brand, p.price, p.currency, p.stock, p.status, \
         p.version, p.created_at, p.updated_at FROM products p LEFT JOIN categories c ON c.id = p.category_id \
         LEFT JOIN brands b ON b.id = p.brand_id WHERE p.id IN ({marks})"
    );
    for mut row in s.rows(&text, values).await? {
        let product = Product {
            id: row.text(0)?,
            name: row.text(1)?,
            description: row.text(2)?,
            category: row.optional(3)?,
            brand: row.optional(4)?,
            price: shown(row.decimal(5)?),
            currency: row.text(6)?,
            stock: stock(row.int(7)?)?,
            status: Status::parse(&row.text(8)?).ok_or(CatalogError::Corrupt("a status is unknown"))?,
            images: Vec::new(),
            attributes: Vec::new(),
            related: Vec::new(),
            version: row.whole(9)?,
            created_at: row.int(10)?,
            updated_at: row.int(11)?,
        };
        found.insert(product.id.clone(), product);
    }
    let there: Vec<&String> = ids.iter().copied().filter(|id| found.contains_key(*id)).collect();
    if there.is_empty() {
        return Ok(());
    }
    let (marks, values) = list(&there);
    let images = format!(
        "SELECT product_id, url, alt FROM product_images WHERE product_id IN ({marks}) ORDER BY product_id, position"
    );
    for mut row in s.rows(&images, values.clone()).await? {
        if let Some(product) = found.get_mut(&row.text(0)?) {
            product.images.push(Image { url: row.text(1)?, alt: row.text(2)? });
        }
    }
    let attributes = format!(
        "SELECT product_id, name, value FROM product_attributes WHERE product_id IN ({marks}) \
         ORDER BY product_id, position"
    );
    for mut row in s.rows(&attributes, values.clone()).await? {
        if let Some(product) = found.get_mut(&row.text(0)?) {
            product.attributes.push(Attribute { name: row.text(1)?, value: row.text(2)? });
        }
    }
    let related = format!(
        "SELECT r.product_id, {SUMMARY} FROM related_products r \
         JOIN products p ON p.id = r.related_id AND p.status = 'active' {SUMMARY_FROM} \
         WHERE r.product_id IN ({marks}) ORDER BY r.product_id, r.position"
    );
    for mut row in s.rows(&related, values).await? {
        if let Some(product) = found.get_mut(&row.text(0)?) {
            product.related.push(summary(&mut row, 1)?);
        }
    }
    Ok(())
}

/// Products that have `id` among their related ones, at most `most` of them.
pub(super) async fn referrers<S: Session>(s: &mut S, id: &str, most: usize) -> Result<Vec<String>, CatalogError> {
    let values = vec![Value::text(id), Value::whole(most as u64)];
    let rows = s.rows("SELECT product_id FROM related_products WHERE related_id = ? LIMIT ?", values).await?;
    Ok(rows.into_iter().map(|mut row| row.text(0)).collect::<Result<_, _>>()?)
}

/// What is stored of products, as it was given, with version and time of creation; of those that are there.
pub(super) async fn given<S: Session>(
    s: &mut S,
    ids: &[String],
) -> Result<HashMap<String, (NewProduct, u64)>, CatalogError> {
    let mut out = HashMap::new();
    for product in products(s, ids).await? {
        let new = NewProduct {
            id: product.id.clone(),
            name: product.name,
            description: product.description,
            category: product.category,
            brand: product.brand,
            price: product.price,
            currency: product.currency,
            stock: product.stock,
            status: product.status,
            images: product.images,
            attributes: product.attributes,
            related: Vec::new(),
            created_at: Some(product.created_at),
        };
        out.insert(product.id, (new, product.version));
    }
    for ids in ids.chunks(AT_ONCE) {
        let (marks, values) = list(ids);
        let mut sql = Sql::new("SELECT product_id, related_id FROM related_products WHERE product_id IN (");
        sql.add(&format!("{marks}) ORDER BY product_id, position"), values);
        for mut row in sql.run(s).await? {
            if let Some((new, _)) = out.get_mut(&row.text(0)?) {
                new.related.push(row.text(1)?);
            }
        }
    }
    Ok(out)
}
