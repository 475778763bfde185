/*
 * token.c
 *		Fuzzes src/token.c: parse, make, mask, find, redact.
 *
 * A fuzzer does not guess check digits, so bytes above 0x7f stand for a whole
 * token, or for a part of the last one; the others stand for themselves.
 */
#include "server.h"

#include "token.h"

#define TEXT_MAX 1024

static const char *const names[] = {"rk", "a", "prod", "z9", "abcdefghijklmnop", "stage"};

static bool
base62(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

static bool
name_char(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z');
}

/* Tokens for the bytes that stand for them; returns the text's length. */
static size_t
expand(const uint8 *data, size_t size, char *text)
{
	char		token[TOKEN_MAX_LEN + 1] = "";
	size_t		token_len = 0;
	size_t		len = 0;

	for (size_t i = 0; i < size && len + TOKEN_MAX_LEN < TEXT_MAX; i++)
	{
		if (data[i] < 0x80)
			text[len++] = data[i];
		else if (data[i] < 0xe0 || token_len == 0)
		{
			token_len = token_make(names[data[i] % lengthof(names)],
								   names[data[i] / 8 % lengthof(names)], token);
			memcpy(text + len, token, token_len);
			len += token_len;
		}
		else
		{
			size_t		from = i + 1 < size ? data[++i] % token_len : 0;

			memcpy(text + len, token + from, token_len - from);
			len += token_len - from;
		}
	}
	return len;
}

/* A copy without a byte to spare, so that a read beyond it is seen. */
static char *
exact(const char *s, size_t len)
{
	char	   *copy = malloc(len > 0 ? len : 1);

	memcpy(copy, s, len);
	return copy;
}

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

/* Whether prefix_environment_key id_ ends before a place, said anew. */
static bool
behind_key_id(const char *s, size_t at)
{
	size_t		environment_end;
	size_t		prefix_end;
	size_t		i;

	if (at < TOKEN_KEY_ID_LEN + 2 || s[at - 1] != '_' ||
		s[at - TOKEN_KEY_ID_LEN - 2] != '_')
		return false;
	environment_end = at - TOKEN_KEY_ID_LEN - 2;
	for (i = environment_end + 1; i < at - 1; i++)
		if (!base62(s[i]))
			return false;
	for (i = environment_end; i > 0 && base62(s[i - 1]); i--)
		;
	if (!token_name_ok(s + i, environment_end - i) || i == 0 || s[i - 1] != '_')
		return false;
	prefix_end = i - 1;
	for (i = prefix_end; i > 0 && prefix_end - i < TOKEN_NAME_MAX && name_char(s[i - 1]); i--)
		if (s[i - 1] >= 'a' && s[i - 1] <= 'z')
			return true;
	return false;
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
	char	   *text = exact(s, len);
	char	   *again;
	size_t		masked = token_redact(text, len);

	HOLDS(masked <= len);
	if (!token_suspected(s, len))
		HOLDS(masked == len && memcmp(text, s, len) == 0);
	for (size_t i = 0; i < masked; i++)
		HOLDS(!base62(text[i]) || !behind_key_id(text, i));
	again = exact(text, masked);
	HOLDS(token_redact(again, masked) == masked && memcmp(again, text, masked) == 0);
	free(again);
	free(text);
}

int
LLVMFuzzerTestOneInput(const uint8 *data, size_t size)
{
	char		expanded[TEXT_MAX];
	size_t		len;
	char	   *text;
	TokenParts	parts;

	server_seed(size);
	len = expand(data, size, expanded);
	text = exact(expanded, len);
	if (token_parse(text, len, &parts))
		check_parsed(text, len, &parts);
	check_find(text, len);
	check_redact(text, len);
	free(text);
	return 0;
}
