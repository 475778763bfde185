/*
 * token.c
 *		What a token looks like: make, parse, mask, find.
 *
 *		rk_prod_7Yh2kQ9mZp1x_AbCdEfGhIjKlMnOpQrStUvWxYz0123456789aBcDeFg3kQc5j
 *		prefix_environment_key id (12)_secret (43) and check digits (6)
 *
 * Knows no catalog and no setting.  Takes any bytes; reads none beyond the
 * length that it is given.  The server's encodings have no ASCII byte inside a
 * longer character, so bytes can be looked at one by one.
 */
#include "postgres.h"

#include "port.h"
#include "utils/pg_crc.h"

#include "token/token.h"

static const char base62[] =
"0123456789ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz";

/* Stars of a masked secret. */
#define MASK_LEN 8

/*
 * Digits at the end of a token that tell a token from a name, where no more is
 * known; fewer leave more of the secret unknown than can be guessed.
 */
#define LONG_TAIL 20

/* What is known of a field, a run of base62 digits, in a text. */
typedef struct Field
{
	size_t		len;
	bool		name;			/* its bytes make a name, but for its length */
	size_t		since_letter;	/* bytes of names at its end, from the last
								 * letter on; 0: none has a letter */
} Field;

/* The last fields of a text that is read byte by byte, one '_' between them. */
typedef struct FieldScan
{
	Field		prefix;			/* it, or what ends in it */
	Field		environment;
	Field		key_id;
	Field		current;
} FieldScan;

static size_t redact(char *s, size_t len, size_t min_tail);
static size_t finish_redaction(char *s, size_t len, size_t from, size_t to);
static bool scan_byte(FieldScan *scan, char c);
static size_t environment_to_tail(const FieldScan *scan);
static size_t prefix_begin(const char *s, size_t prefix_end, size_t floor);
static void random_digits(char *out, int count);
static void check_digits(const char *s, size_t len, char *out);

/* What a byte may be; ASCII. */
#define DIGIT 1
#define SMALL 2
#define CAPITAL 4

static const uint8 classes[256] = {
	['0'] = DIGIT, ['1'] = DIGIT, ['2'] = DIGIT, ['3'] = DIGIT, ['4'] = DIGIT,
	['5'] = DIGIT, ['6'] = DIGIT, ['7'] = DIGIT, ['8'] = DIGIT, ['9'] = DIGIT,
#define LETTER(capital, small) [capital] = CAPITAL, [small] = SMALL
	LETTER('A', 'a'), LETTER('B', 'b'), LETTER('C', 'c'), LETTER('D', 'd'),
	LETTER('E', 'e'), LETTER('F', 'f'), LETTER('G', 'g'), LETTER('H', 'h'),
	LETTER('I', 'i'), LETTER('J', 'j'), LETTER('K', 'k'), LETTER('L', 'l'),
	LETTER('M', 'm'), LETTER('N', 'n'), LETTER('O', 'o'), LETTER('P', 'p'),
	LETTER('Q', 'q'), LETTER('R', 'r'), LETTER('S', 's'), LETTER('T', 't'),
	LETTER('U', 'u'), LETTER('V', 'v'), LETTER('W', 'w'), LETTER('X', 'x'),
	LETTER('Y', 'y'), LETTER('Z', 'z')
#undef LETTER
};

static inline bool
is_name_start(char c)
{
	return (classes[(uint8) c] & SMALL) != 0;
}

static inline bool
is_name_char(char c)
{
	return (classes[(uint8) c] & (SMALL | DIGIT)) != 0;
}

static inline bool
is_base62(char c)
{
	return classes[(uint8) c] != 0;
}

static bool
all_base62(const char *s, size_t len)
{
	bool		good = true;

	/* No branch: nearly always all of them are. */
	for (size_t i = 0; i < len; i++)
		good &= is_base62(s[i]);
	return good;
}

/* Whether it is [a-z][a-z0-9]{0,15}: a prefix or an environment. */
bool
token_name_ok(const char *s, size_t len)
{
	if (len < 1 || len > TOKEN_NAME_MAX || !is_name_start(s[0]))
		return false;
	for (size_t i = 1; i < len; i++)
		if (!is_name_char(s[i]))
			return false;
	return true;
}

/*
 * Whether the string is a token, by its shape and check digits, and its parts.
 */
bool
token_parse(const char *s, size_t len, TokenParts *parts)
{
	return token_split(s, len, parts) && token_check(s, len);
}

/*
 * Whether the string has the shape of a token, and its parts.  Works from the
 * right, where the parts have fixed lengths.
 */
bool
token_split(const char *s, size_t len, TokenParts *parts)
{
	const char *separator;
	size_t		names_len;

	if (len < TOKEN_MIN_LEN || len > TOKEN_MAX_LEN)
		return false;
	parts->secret = s + len - TOKEN_TAIL_LEN;
	parts->key_id = parts->secret - 1 - TOKEN_KEY_ID_LEN;
	if (parts->secret[-1] != '_' || parts->key_id[-1] != '_' ||
		!all_base62(parts->secret, TOKEN_TAIL_LEN) ||
		!all_base62(parts->key_id, TOKEN_KEY_ID_LEN))
		return false;

	names_len = parts->key_id - 1 - s;
	separator = memchr(s, '_', names_len);
	if (separator == NULL)
		return false;
	parts->prefix = s;
	parts->prefix_len = separator - s;
	parts->environment = separator + 1;
	parts->environment_len = names_len - parts->prefix_len - 1;
	return token_name_ok(parts->prefix, parts->prefix_len) &&
		token_name_ok(parts->environment, parts->environment_len);
}

/* Whether the check digits of what has the shape of a token are right. */
bool
token_check(const char *s, size_t len)
{
	char		check[TOKEN_CHECK_LEN];

	check_digits(s, len - TOKEN_CHECK_LEN, check);
	for (int i = 0; i < TOKEN_CHECK_LEN; i++)
		if (check[i] != s[len - TOKEN_CHECK_LEN + i])
			return false;
	return true;
}

/*
 * Make a token of a good prefix and environment into a buffer of
 * TOKEN_MAX_LEN + 1 bytes, terminated; returns its length.
 */
size_t
token_make(const char *prefix, const char *environment, char *token)
{
	size_t		len = snprintf(token, TOKEN_MAX_LEN + 1, "%s_%s_",
							   prefix, environment);

	random_digits(token + len, TOKEN_KEY_ID_LEN);
	len += TOKEN_KEY_ID_LEN;
	token[len++] = '_';
	random_digits(token + len, TOKEN_SECRET_LEN);
	len += TOKEN_SECRET_LEN;
	check_digits(token, len, token + len);
	len += TOKEN_CHECK_LEN;
	token[len] = '\0';
	return len;
}

/* Make a key id into a buffer of TOKEN_KEY_ID_LEN + 1 bytes, terminated. */
void
token_make_key_id(char *key_id)
{
	random_digits(key_id, TOKEN_KEY_ID_LEN);
	key_id[TOKEN_KEY_ID_LEN] = '\0';
}

/*
 * Write the masked form of a token, rk_prod_7Yh2kQ9mZp1x_********DeFg, into a
 * buffer of TOKEN_MAX_LEN bytes, not terminated; returns its length.
 */
size_t
token_mask(const TokenParts *parts, char *out)
{
	size_t		head = parts->secret - parts->prefix;

	memmove(out, parts->prefix, head);
	memset(out + head, '*', MASK_LEN);
	memmove(out + head + MASK_LEN,
			parts->secret + TOKEN_SECRET_LEN - TOKEN_HINT_LEN, TOKEN_HINT_LEN);
	return head + MASK_LEN + TOKEN_HINT_LEN;
}

/*
 * The next token at or after a position.  The check digits decide where its
 * prefix begins: the longest that fits them.  Of a longer run of base62 digits
 * at its end, what belongs to the token counts.  Linear in what it walks over:
 * a walk that goes on from each token's end sees each byte a bounded number of
 * times.
 */
bool
token_find(const char *s, size_t len, size_t from, TokenParts *parts,
		   size_t *start, size_t *token_len)
{
	FieldScan	scan = {0};

	for (size_t i = from; i < len; i++)
	{
		size_t		tail = i + 1;
		size_t		prefix_end;

		if (!scan_byte(&scan, s[i]))
			continue;
		if (len - tail < TOKEN_TAIL_LEN || !all_base62(s + tail, TOKEN_TAIL_LEN))
			continue;
		prefix_end = tail - environment_to_tail(&scan) - 1;
		for (size_t begin = prefix_begin(s, prefix_end, from);
			 begin < prefix_end; begin++)
		{
			if (token_parse(s + begin, tail + TOKEN_TAIL_LEN - begin, parts))
			{
				*start = begin;
				*token_len = tail + TOKEN_TAIL_LEN - begin;
				return true;
			}
		}
	}
	return false;
}

/*
 * Whether there may be something to mask, at the speed of memchr(): two
 * underscores with a key id between them.  False means that token_redact()
 * would change nothing.
 */
bool
token_suspected(const char *s, size_t len)
{
	const char *end = s + len;
	const char *at = s;

	while ((at = memchr(at, '_', end - at)) != NULL)
	{
		if (at - s > TOKEN_KEY_ID_LEN && at[-TOKEN_KEY_ID_LEN - 1] == '_' &&
			all_base62(at - TOKEN_KEY_ID_LEN, TOKEN_KEY_ID_LEN))
			return true;
		at++;
	}
	return false;
}

/*
 * Mask, in place, all that looks like a token: any run of base62 digits behind
 * prefix_environment_12 digits_, since texts are cut within a token, and
 * tokens are mistyped.  The parts of one may be parts of another, as where two
 * were pasted without a blank between them.  Returns the new length, never
 * more than the old one; the rest is wiped.  Linear; allocates nothing and
 * raises nothing.
 */
size_t
token_redact(char *s, size_t len)
{
	return redact(s, len, 0);
}

/*
 * The same for a text that is kept, which may be a name such as
 * app_billing_subscription_reader: only what ends in LONG_TAIL digits or more.
 */
size_t
token_redact_kept(char *s, size_t len)
{
	return redact(s, len, LONG_TAIL);
}

/*
 * Mask, in place, what may be the end of a token whose beginning was cut away,
 * as errors in JSON and XML do: runs of LONG_TAIL base62 digits or more in the
 * word behind "..." or a line break.  Returns and wipes as token_redact() does.
 */
size_t
token_redact_cut(char *s, size_t len)
{
	size_t		from = 0;		/* as in redact() */
	size_t		to = 0;
	bool		cut = false;	/* in such a word */

	for (size_t at = 0; at < len;)
	{
		size_t		begin = at;

		while (at < len && is_base62(s[at]))
			at++;
		if (cut && at - begin >= LONG_TAIL)
		{
			memmove(s + to, s + from, begin - from);
			to += begin - from;
			memset(s + to, '*', MASK_LEN);
			to += MASK_LEN;
			from = at;
		}
		if (at == len)
			break;
		if (s[at] != '_')
			cut = s[at] == '\n' ||
				(at >= 2 && memcmp(s + at - 2, "...", 3) == 0);
		at++;
	}
	return finish_redaction(s, len, from, to);
}

/* Of fewer base62 digits than min_tail nothing is masked. */
static size_t
redact(char *s, size_t len, size_t min_tail)
{
	FieldScan	scan = {0};
	size_t		from = 0;		/* first byte that was not moved yet */
	size_t		to = 0;			/* where it goes */

	for (size_t tail = 0; tail < len;)
	{
		size_t		end;
		size_t		prefix_end;
		char		masked[MASK_LEN + TOKEN_HINT_LEN];
		size_t		masked_len;
		TokenParts	parts;

		if (!scan_byte(&scan, s[tail++]))
			continue;
		prefix_end = tail - environment_to_tail(&scan) - 1;
		for (end = tail; end < len && is_base62(s[end]); end++)
			scan_byte(&scan, s[end]);
		if (end - tail < min_tail)
		{
			tail = end;
			continue;
		}
		masked_len = Min(end - tail, (size_t) MASK_LEN);
		memset(masked, '*', masked_len);

		/*
		 * The last digits of the secret are shown of a whole token alone, and
		 * only if none of it was dealt with before.
		 */
		if (end - tail == TOKEN_TAIL_LEN)
			for (size_t begin = prefix_begin(s, prefix_end, from);
				 begin < prefix_end; begin++)
			{
				if (token_parse(s + begin, end - begin, &parts))
				{
					memcpy(masked + MASK_LEN,
						   parts.secret + TOKEN_SECRET_LEN - TOKEN_HINT_LEN,
						   TOKEN_HINT_LEN);
					masked_len += TOKEN_HINT_LEN;
					/* these digits, unlike the last ones, may end a prefix */
					scan.current.since_letter = 1;
					break;
				}
			}

		memmove(s + to, s + from, tail - from);
		to += tail - from;
		memcpy(s + to, masked, masked_len);
		to += masked_len;
		from = tail = end;
	}
	return finish_redaction(s, len, from, to);
}

/*
 * Move what is left, and wipe what it leaves behind, which may be half a token,
 * and makes a shorter C string end.  Returns the new length.
 */
static size_t
finish_redaction(char *s, size_t len, size_t from, size_t to)
{
	size_t		left = len - from;

	memmove(s + to, s + from, left);
	explicit_bzero(s + to + left, from - to);
	return to + left;
}

/*
 * Take in the next byte of a text.  Returns whether the last part of a token
 * could begin behind it: it ends prefix_environment_12 digits_.
 */
static bool
scan_byte(FieldScan *scan, char c)
{
	Field	   *field = &scan->current;

	if (is_base62(c))
	{
		if (field->len == 0)
			field->name = is_name_start(c);
		else
			field->name = field->name && is_name_char(c);
		if (is_name_start(c))
			field->since_letter = 1;
		else if (!is_name_char(c))
			field->since_letter = 0;
		else if (field->since_letter > 0)
			field->since_letter++;
		field->len++;
		return false;
	}
	if (c != '_')
	{
		memset(scan, 0, sizeof(*scan));
		return false;
	}
	scan->prefix = scan->environment;
	scan->environment = scan->key_id;
	scan->key_id = *field;
	memset(field, 0, sizeof(*field));
	return scan->key_id.len == TOKEN_KEY_ID_LEN &&
		scan->environment.name && scan->environment.len <= TOKEN_NAME_MAX &&
		scan->prefix.since_letter > 0 &&
		scan->prefix.since_letter <= TOKEN_NAME_MAX;
}

/* How far before a token's last part its environment begins. */
static size_t
environment_to_tail(const FieldScan *scan)
{
	return scan->environment.len + 1 + TOKEN_KEY_ID_LEN + 1;
}

/*
 * The first place where a prefix with a given end could begin, none of it
 * before floor; its end, if it could not.
 */
static size_t
prefix_begin(const char *s, size_t prefix_end, size_t floor)
{
	size_t		begin = prefix_end;

	while (begin > floor && prefix_end - begin < TOKEN_NAME_MAX &&
		   is_name_char(s[begin - 1]))
		begin--;
	return begin;
}

/*
 * Random base62 digits, each equally likely: of the 64 values of six random
 * bits the two that are no digit are thrown away.
 */
static void
random_digits(char *out, int count)
{
	uint8		pool[64];
	size_t		used = sizeof(pool);

	for (int i = 0; i < count;)
	{
		uint8		value;

		if (used == sizeof(pool))
		{
			if (!pg_strong_random(pool, sizeof(pool)))
				ereport(ERROR,
						(errcode(ERRCODE_INTERNAL_ERROR),
						 errmsg("could not get random bytes for a token")));
			used = 0;
		}
		value = pool[used++] & 63;
		if (value < 62)
			out[i++] = base62[value];
	}
	explicit_bzero(pool, sizeof(pool));
}

/* CRC-32 (IEEE 802.3, as zlib's) as 6 base62 digits, the highest first. */
static void
check_digits(const char *s, size_t len, char *out)
{
	pg_crc32	crc;

	INIT_TRADITIONAL_CRC32(crc);
	COMP_TRADITIONAL_CRC32(crc, s, len);
	FIN_TRADITIONAL_CRC32(crc);
	for (int i = TOKEN_CHECK_LEN - 1; i >= 0; i--)
	{
		out[i] = base62[crc % 62];
		crc /= 62;
	}
}
