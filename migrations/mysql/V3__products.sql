-- What is looked for is in search_words, as words of plain letters (see catalog/words.rs): no stop word, and none too short.
CREATE TABLE IF NOT EXISTS products (
    id VARCHAR(64) NOT NULL PRIMARY KEY,
    name VARCHAR(255) NOT NULL,
    name_key VARCHAR(255) NOT NULL,
    description MEDIUMTEXT NOT NULL,
    category_id BIGINT NULL,
    brand_id BIGINT NULL,
    price DECIMAL(14, 4) NOT NULL,
    currency CHAR(3) NOT NULL,
    stock BIGINT NOT NULL,
    status VARCHAR(16) NOT NULL,
    version BIGINT NOT NULL,
    created_at BIGINT NOT NULL,
    updated_at BIGINT NOT NULL,
    name_words TEXT NOT NULL,
    search_words MEDIUMTEXT NOT NULL,
    FULLTEXT INDEX products_search (search_words),
    INDEX products_name (name_key, id),
    INDEX products_price (price, id),
    INDEX products_created (created_at, id),
    FOREIGN KEY (category_id) REFERENCES categories (id),
    FOREIGN KEY (brand_id) REFERENCES brands (id)
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
