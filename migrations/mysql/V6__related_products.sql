-- What is related may come later, or be gone: readers join it with what is there.
CREATE TABLE IF NOT EXISTS related_products (
    product_id VARCHAR(64) NOT NULL,
    position BIGINT NOT NULL,
    related_id VARCHAR(64) NOT NULL,
    PRIMARY KEY (product_id, position),
    -- Who shows a product as related is asked when it changes.
    KEY related_products_related (related_id),
    FOREIGN KEY (product_id) REFERENCES products (id) ON DELETE CASCADE
) ENGINE = InnoDB DEFAULT CHARSET = utf8mb4 COLLATE = utf8mb4_bin;
