/*
 * token.c
 *		Fuzzes src/token/token.c: parse, make, mask, find, redact.
 */
#include "server.h"

#include "texts.h"
#include "token/token.h"

/* What a masked token shows of the secret: four digits. */
static void
check_parsed(const char *s, size_t len, const TokenParts *parts)
{
	char		masked[TOKEN_MAX_LEN];
	size_t		head = len - TOKEN_TAIL_LEN;
	size_t		masked_len;

	HOLDS(parts->prefix == s && token_name_ok(s, parts->prefix_len));
	HOLDS(token_name_ok(parts->environment, parts->environment_len));
	HOLDS(parts->secret == s + head);
	HOLDS(parts->key_id == s + head - 1 - TOKEN_KEY_ID_LEN);
	HOLDS((size_t) (parts->prefix_len + parts->environment_len) + 3 + TOKEN_KEY_ID_LEN == head);
	masked_len = token_mask(parts, masked);
	HOLDS(masked_len == head + 8 + TOKEN_HINT_LEN && masked_len < len);
	HOLDS(memcmp(masked, s, head) == 0);
	HOLDS(memcmp(masked + head, "********", 8) == 0);
	HOLDS(memcmp(masked + head + 8, s + head + TOKEN_SECRET_LEN - TOKEN_HINT_LEN, TOKEN_HINT_LEN) == 0);
}

static void
check_find(const char *s, size_t len)
{
	size_t		from = 0;
	size_t		start;
	size_t		found;
	TokenParts	parts,
				again;
	bool	   *covered = calloc(len + 1, 1);

	while (token_find(s, len, from, &parts, &start, &found))
	{
		HOLDS(start >= from && start + found <= len);
		HOLDS(token_parse(s + start, found, &again));
		HOLDS(parts.secret == again.secret && parts.key_id == again.key_id &&
			  parts.environment == again.environment && parts.prefix == again.prefix);
		memset(covered + start, true, found);
		from = start + found;
	}
	/* what is a token was found, or it overlaps one that was */
	for (size_t end = TOKEN_MIN_LEN; end <= len; end++)
		if (s[end - TOKEN_TAIL_LEN - 1] == '_')
			for (size_t n = TOKEN_MIN_LEN; n <= TOKEN_MAX_LEN && n <= end; n++)
				if (token_parse(s + end - n, n, &parts))
					HOLDS(memchr(covered + end - n, true, n) != NULL);
	free(covered);
}

static void
check_redact(const char *s, size_t len)
{
	char	   *text = texts_exact(s, len);
	char	   *again;
	size_t		masked = token_redact(text, len);

	HOLDS(masked <= len);
	if (!token_suspected(s, len))
		HOLDS(masked == len && memcmp(text, s, len) == 0);
	for (size_t i = 0; i < masked; i++)
	{
		size_t		end = i;

		if (!texts_behind_key_id(text, i))
			continue;
		while (end < masked && texts_base62(text[end]))
			end++;
		HOLDS(end == i || texts_tail_of_name(text, i, end));
	}
	again = texts_exact(text, masked);
	HOLDS(token_redact(again, masked) == masked && memcmp(again, text, masked) == 0);
	free(again);
	free(text);
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	char		expanded[TEXTS_MAX];
	size_t		len;
	char	   *text;
	TokenParts	parts;

	server_seed(size);
	len = texts_expand(data, size, expanded);
	text = texts_exact(expanded, len);
	if (token_parse(text, len, &parts))
		check_parsed(text, len, &parts);
	check_find(text, len);
	check_redact(text, len);
	free(text);
	return 0;
}
