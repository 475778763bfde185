/*
 * texts.c
 *		Texts with tokens in them, for the fuzzers that mask.
 *
 * A fuzzer does not guess check digits, so bytes above 0x7f stand for a whole
 * token, or for a part of the last one; the others stand for themselves.
 */
#include "server.h"

#include "texts.h"
#include "token/token.h"

static const char *const names[] = {"rk", "a", "prod", "z9", "abcdefghijklmnop", "stage"};

bool
texts_base62(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'A' && c <= 'Z') || (c >= 'a' && c <= 'z');
}

static bool
name_char(char c)
{
	return (c >= '0' && c <= '9') || (c >= 'a' && c <= 'z');
}

/* Tokens for the bytes that stand for them; returns the text's length. */
size_t
texts_expand(const uint8 *data, size_t size, char *text)
{
	char		token[TOKEN_MAX_LEN + 1] = "";
	size_t		token_len = 0;
	size_t		len = 0;

	for (size_t i = 0; i < size && len + TOKEN_MAX_LEN < TEXTS_MAX; i++)
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
char *
texts_exact(const char *s, size_t len)
{
	char	   *copy = malloc(len > 0 ? len : 1);

	memcpy(copy, s, len);
	return copy;
}

/* Whether prefix_environment_key id_ ends before a place, said anew. */
bool
texts_behind_key_id(const char *s, size_t at)
{
	size_t		environment_end;
	size_t		prefix_end;
	size_t		i;

	if (at < TOKEN_KEY_ID_LEN + 2 || s[at - 1] != '_' ||
		s[at - TOKEN_KEY_ID_LEN - 2] != '_')
		return false;
	environment_end = at - TOKEN_KEY_ID_LEN - 2;
	for (i = environment_end + 1; i < at - 1; i++)
		if (!texts_base62(s[i]))
			return false;
	for (i = environment_end; i > 0 && texts_base62(s[i - 1]); i--)
		;
	if (!token_name_ok(s + i, environment_end - i) || i == 0 || s[i - 1] != '_')
		return false;
	prefix_end = i - 1;
	for (i = prefix_end; i > 0 && prefix_end - i < TOKEN_NAME_MAX && name_char(s[i - 1]); i--)
		if (s[i - 1] >= 'a' && s[i - 1] <= 'z')
			return true;
	return false;
}

/* Small letters alone, or hexadecimal digits with small letters. */
static bool
plain(const char *s, size_t len)
{
	return strspn(s, "abcdefghijklmnopqrstuvwxyz") >= len ||
		strspn(s, "0123456789abcdef") >= len;
}

/* Whether a run of digits behind a key id ends a name, said anew. */
bool
texts_tail_of_name(const char *s, size_t at, size_t end)
{
	char		key_id[TOKEN_KEY_ID_LEN + 1] = "";
	char		tail[TEXTS_MAX] = "";

	memcpy(key_id, s + at - 1 - TOKEN_KEY_ID_LEN, TOKEN_KEY_ID_LEN);
	memcpy(tail, s + at, end - at);
	if (end - at >= 20)
		return plain(key_id, strlen(key_id)) && plain(tail, end - at);
	for (size_t i = 0; i < TOKEN_KEY_ID_LEN; i++)
		if (!name_char(key_id[i]))
			return false;
	for (size_t i = at; i < end; i++)
		if (!name_char(s[i]))
			return false;
	return true;
}
