//! Search: one statement for the page, one for the total, one a facet.
//!
//! Words are the same in all databases ([`crate::catalog::words`]), what is sorted compares byte by byte, and relevance is
//! counted, not weighed. So all databases give the same products in the same order.

use super::read::{SUMMARY, SUMMARY_FROM, summary};
use crate::catalog::model::shown;
use crate::catalog::search::{Checked, Facet, Facets, PRICE_STEPS, PriceRange, SearchPage, SearchQuery, Sort};
use crate::catalog::{CatalogError, words};
use crate::database::{Dialect, Row, Session, Sql, Value};

/// Words that count for relevance. A fixed number, so that few statements are prepared.
const RANKED: usize = 4;

#[derive(Clone, Copy, PartialEq, Eq)]
enum Filter {
    Category,
    Brand,
    Price,
    Stock,
}

/// Answers a question.
pub(super) async fn search<S: Session>(s: &mut S, query: &SearchQuery) -> Result<SearchPage, CatalogError> {
    let checked = query.check()?;
    let mut answer = SearchPage {
        items: Vec::new(),
        total: 0,
        page: if checked.after.is_some() { 0 } else { query.page },
        per_page: query.per_page,
        total_pages: 0,
        next: None,
        facets: query.facets.then(Facets::default),
    };
    // Nothing is written with signs only.
    if checked.words.as_ref().is_some_and(Vec::is_empty) {
        return Ok(answer);
    }
    let mut total = Sql::new("SELECT COUNT(*) FROM products p");
    conditions::<S>(&mut total, &checked, None);
    answer.total = total.run(s).await?.first_mut().map_or(Ok(0), |row| row.whole(0))?;
    answer.total_pages = answer.total.div_ceil(u64::from(query.per_page));
    if query.facets {
        answer.facets = Some(facets(s, &checked).await?);
    }
    let mut rows = page::<S>(&checked).run(s).await?;
    let more = rows.len() > query.per_page as usize;
    rows.truncate(query.per_page as usize);
    let mut key = String::new();
    for mut row in rows {
        answer.items.push(summary(&mut row, 0)?);
        key = match checked.sort {
            Sort::Price | Sort::PriceDesc => shown(row.decimal(9)?).to_string(),
            Sort::Name => row.text(9)?,
            Sort::Relevance | Sort::Newest => row.int(9)?.to_string(),
        };
    }
    if let Some(last) = answer.items.last().filter(|_| more) {
        answer.next = Some(query.cursor_behind(key, last.id.clone()));
    }
    Ok(answer)
}

/// The `WHERE` of a question, without one of its filters.
fn conditions<S: Session>(sql: &mut Sql, checked: &Checked, without: Option<Filter>) {
    let query = checked.query;
    sql.add(" WHERE p.status = 'active'", []);
    if let Some(words) = &checked.words {
        match S::DIALECT {
            Dialect::Sqlite => {
                let words: Vec<String> = words.iter().map(|word| format!("\"{word}\"")).collect();
                sql.add(
                    " AND p.num IN (SELECT rowid FROM product_search WHERE product_search MATCH ?)",
                    [Value::text(words.join(" "))],
                );
            }
            Dialect::Postgres => {
                sql.add(" AND p.search @@ websearch_to_tsquery('simple', ?)", [Value::text(words.join(" "))]);
            }
            Dialect::MySql => {
                let words: Vec<String> = words.iter().map(|word| format!("+{word}")).collect();
                sql.add(" AND MATCH(p.search_words) AGAINST(? IN BOOLEAN MODE)", [Value::text(words.join(" "))]);
            }
        }
    }
    if let Some(name) = query.category.as_ref().filter(|_| without != Some(Filter::Category)) {
        sql.add(" AND p.category_id = (SELECT id FROM categories WHERE name = ?)", [Value::text(name)]);
    }
    if let Some(name) = query.brand.as_ref().filter(|_| without != Some(Filter::Brand)) {
        sql.add(" AND p.brand_id = (SELECT id FROM brands WHERE name = ?)", [Value::text(name)]);
    }
    if without != Some(Filter::Price) {
        if let Some(least) = query.min_price {
            sql.add(" AND p.price >= ?", [Value::Decimal(least)]);
        }
        if let Some(most) = query.max_price {
            sql.add(" AND p.price <= ?", [Value::Decimal(most)]);
        }
    }
    match query.in_stock.filter(|_| without != Some(Filter::Stock)) {
        Some(true) => _ = sql.add(" AND p.stock > 0", []),
        Some(false) => _ = sql.add(" AND p.stock = 0", []),
        None => {}
    }
}

fn page<S: Session>(checked: &Checked) -> Sql {
    let ranks = || {
        let words = checked.words.iter().flatten().map(|word| Value::text(format!("% {word} %")));
        // A pattern that no name has.
        words.chain(std::iter::repeat_with(|| Value::text(""))).take(RANKED)
    };
    let rank = ["CASE WHEN p.name_words LIKE ? THEN 1 ELSE 0 END"; RANKED].join(" + ");
    let (key, descending) = match checked.sort {
        Sort::Relevance => (rank.as_str(), true),
        Sort::Price => ("p.price", false),
        Sort::PriceDesc => ("p.price", true),
        Sort::Name => ("p.name_key", false),
        Sort::Newest => ("p.created_at", true),
    };
    let ranked = checked.sort == Sort::Relevance;
    let mut sql = Sql::new(&format!("SELECT {SUMMARY}, {key} AS sort_key FROM products p {SUMMARY_FROM}"));
    if ranked {
        sql.values.extend(ranks());
    }
    conditions::<S>(&mut sql, checked, None);
    if let Some(after) = &checked.after {
        // Both were looked at when the cursor was read.
        let last = match checked.sort {
            Sort::Name => Value::text(&after.k),
            Sort::Price | Sort::PriceDesc => Value::Decimal(after.k.parse().unwrap_or_default()),
            Sort::Relevance | Sort::Newest => Value::Int(after.k.parse().unwrap_or_default()),
        };
        let beyond = if descending { "<" } else { ">" };
        sql.add(&format!(" AND (({key}) {beyond} "), []);
        if ranked {
            sql.values.extend(ranks());
        }
        sql.add("?", [last.clone()]);
        sql.add(&format!(" OR (({key}) = "), []);
        if ranked {
            sql.values.extend(ranks());
        }
        sql.add("? AND p.id > ?))", [last, Value::text(&after.i)]);
    }
    let by = if ranked { "sort_key" } else { key };
    sql.add(&format!(" ORDER BY {by}{}, p.id LIMIT ?", if descending { " DESC" } else { "" }), []);
    // One more than is shown tells whether there is a next page.
    let per_page = checked.query.per_page;
    sql.values.push(Value::whole(u64::from(per_page) + 1));
    if checked.after.is_none() {
        let before = u64::from(checked.query.page - 1) * u64::from(per_page);
        sql.add(" OFFSET ?", [Value::whole(before)]);
    }
    sql
}

async fn facets<S: Session>(s: &mut S, checked: &Checked<'_>) -> Result<Facets, CatalogError> {
    let mut facets = Facets::default();
    for (filter, table, column, into) in [
        (Filter::Category, "categories", "category_id", &mut facets.categories),
        (Filter::Brand, "brands", "brand_id", &mut facets.brands),
    ] {
        let mut sql =
            Sql::new(&format!("SELECT n.name, COUNT(*) AS many FROM products p JOIN {table} n ON n.id = p.{column}"));
        conditions::<S>(&mut sql, checked, Some(filter));
        sql.add(" GROUP BY n.name ORDER BY many DESC, n.name LIMIT 50", []);
        for mut row in sql.run(s).await? {
            into.push(Facet { value: row.text(0)?, count: row.whole(1)? });
        }
    }
    let mut sql = Sql::new("SELECT CASE");
    for (at, step) in PRICE_STEPS.iter().enumerate() {
        // SQLite has ten-thousandths.
        let bound = if S::DIALECT == Dialect::Sqlite { step * 10_000 } else { *step };
        sql.add(&format!(" WHEN p.price < {bound} THEN {at}"), []);
    }
    sql.add(&format!(" ELSE {} END AS step, COUNT(*) FROM products p", PRICE_STEPS.len()), []);
    conditions::<S>(&mut sql, checked, Some(Filter::Price));
    sql.add(" GROUP BY 1 ORDER BY 1", []);
    for mut row in sql.run(s).await? {
        let at = row.whole(0)? as usize;
        let from = at.checked_sub(1).and_then(|at| PRICE_STEPS.get(at)).copied().unwrap_or(0);
        facets.prices.push(PriceRange { from, to: PRICE_STEPS.get(at).copied(), count: row.whole(1)? });
    }
    let mut sql = Sql::new("SELECT CASE WHEN p.stock > 0 THEN 1 ELSE 0 END AS there, COUNT(*) FROM products p");
    conditions::<S>(&mut sql, checked, Some(Filter::Stock));
    sql.add(" GROUP BY 1", []);
    for row in &mut sql.run(s).await? {
        let count = |row: &mut Row| row.whole(1);
        match row.int(0)? {
            1 => facets.in_stock = count(row)?,
            _ => facets.out_of_stock = count(row)?,
        }
    }
    Ok(facets)
}

/// The words that a product is found by, and those of its name.
pub(super) fn words_of(new: &crate::catalog::NewProduct) -> (String, String) {
    let texts = [new.name.as_str(), new.brand.as_deref().unwrap_or_default()];
    let texts = texts.into_iter().chain(new.category.as_deref()).chain([new.id.as_str()]);
    let texts = texts.chain(new.attributes.iter().map(|attribute| attribute.value.as_str()));
    (words::of_name(&new.name), words::of_all(texts.chain([new.description.as_str()])))
}
