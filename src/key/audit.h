/*
 * audit.h
 *		The events of a key.
 */
#ifndef AUDIT_H
#define AUDIT_H

extern void audit_add(const char *events);

#endif
